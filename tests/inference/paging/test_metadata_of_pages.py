"""The arrays of a batch against what each request says on its own, and against torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.engine_api import Batch, ForwardRequest
from pie_trio.inference.metadata import build_metadata
from pie_trio.inference.paging.buckets import BUCKETS, bucket_for, pad_decode
from pie_trio.inference.paging.cascade import (
    Cascade,
    CascadeRule,
    Level,
    find_cascade,
)
from pie_trio.inference.paging.groups import PagedGroup, append_places, split_batch
from pie_trio.inference.paging.masks import is_causal, pack_masks
from pie_trio.inference.paging.staging import ALIGNMENT, fill, lay_out
from tests.inference.paging.batches import NUM_PAGES, attend, batches, seen

if TYPE_CHECKING:
    from random import Random

    from numpy.typing import NDArray

    from pie_trio.inference.metadata import BatchMetadata

DIM = 3


def slots_of(forward: ForwardRequest, page_size: int) -> list[int]:
    return [
        int(forward.page_ids[slot // page_size]) * page_size + slot % page_size
        for slot in range(forward.kv_len)
    ]


def context_of(part: PagedGroup | Level, index: int, page_size: int) -> NDArray[Any]:
    """Return the slots of a request as a kernel finds them."""
    pages = part.page_ids[part.page_indptr[index] : part.page_indptr[index + 1]]
    kv_len = max(len(pages) - 1, 0) * page_size + int(part.last_page_lens[index])
    slots = pages[:, None].astype(np.int64) * page_size + np.arange(page_size)
    return slots.reshape(-1)[:kv_len]


def read_bits(bits: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return a mask as the kernel's own expression reads it."""
    mask = np.zeros(shape, np.bool_)
    for row in range(shape[0]):
        for column in range(shape[1]):
            offset = row * shape[1] + column
            mask[row, column] = (bits[offset // 8] >> (offset % 8)) & 1
    return mask


def plain_groups(batch: Batch, metadata: BatchMetadata) -> list[PagedGroup]:
    """Return the groups without a cascade."""
    groups = [g for g in split_batch(batch, metadata) if isinstance(g, PagedGroup)]
    assert len(groups) == len(split_batch(batch, metadata)) <= 2
    return groups


@given(batches())
def test_groups_hold_every_request_once_with_its_own_pages(
    case: tuple[Batch, int],
) -> None:
    batch, page_size = case
    metadata = build_metadata(batch, page_size)
    groups = plain_groups(batch, metadata)
    found = sorted(r for group in groups for r in group.requests.tolist())
    assert found == list(range(len(batch.forwards)))
    rows = [
        np.arange(len(metadata.token_ids)) if group.rows is None else group.rows
        for group in groups
    ]
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(metadata.token_ids)))
    for group, own in zip(groups, rows, strict=True):
        assert group.page_ids.dtype == group.qo_indptr.dtype == np.int32
        for index, request in enumerate(group.requests.tolist()):
            forward = batch.forwards[request]
            slots = context_of(group, index, page_size)
            assert slots.tolist() == slots_of(forward, page_size)
            assert group.kv_lens[index] == forward.kv_len
            tokens = own[group.qo_indptr[index] : group.qo_indptr[index + 1]]
            assert metadata.token_ids[tokens].tolist() == forward.token_ids.tolist()
            own_slot = forward.kv_len - len(tokens)
            causal = np.tri(len(tokens), forward.kv_len, own_slot, dtype=np.bool_)
            is_plain = (seen(forward) == causal).all()
            assert is_plain == (group.kind != "masked")
            assert group.kind != "decode" or len(tokens) == 1


@given(batches())
def test_decodes_alone_are_a_group_of_their_own_kind(case: tuple[Batch, int]) -> None:
    batch, page_size = case
    metadata = build_metadata(batch, page_size)
    plain = [g for g in plain_groups(batch, metadata) if g.kind != "masked"]
    assert len(plain) <= 1
    for group in plain:
        lengths = {len(batch.forwards[r].token_ids) for r in group.requests.tolist()}
        assert group.kind == ("decode" if lengths == {1} else "prefill")


@given(batches())
def test_new_keys_go_to_the_slots_that_the_reference_writes(
    case: tuple[Batch, int],
) -> None:
    batch, page_size = case
    metadata = build_metadata(batch, page_size)
    owners, slots = append_places(metadata)
    assert owners.dtype == slots.dtype == np.int32
    pages = metadata.page_ids[metadata.page_indptr[owners] + slots // page_size]
    physical = pages.astype(np.int64) * page_size + slots % page_size
    assert physical.tolist() == metadata.write_slots.tolist()


@given(batches(), st.sampled_from([None, 1, 2, 5, 100]))
def test_bits_of_masks_are_where_the_kernel_looks_for_them(
    case: tuple[Batch, int], window: int | None
) -> None:
    forwards = [f for f in case[0].forwards if f.mask is not None]
    if not forwards:
        return
    packed = pack_masks([f.mask for f in forwards if f.mask is not None], window)
    assert packed.bits.dtype == np.uint8
    assert packed.byte_indptr.dtype == np.int32
    blind: list[int] = []
    num_rows = 0
    for index, forward in enumerate(forwards):
        start, stop = packed.byte_indptr[index : index + 2].tolist()
        expected = seen(forward, window)
        shape = (len(forward.token_ids), forward.kv_len)
        assert stop - start == -(-shape[0] * shape[1] // 8)
        assert (read_bits(packed.bits[start:stop], shape) == expected).all()
        blind += (np.flatnonzero(~expected.any(axis=1)) + num_rows).tolist()
        num_rows += shape[0]
    assert packed.byte_indptr[-1] == len(packed.bits)
    assert packed.blind_rows.tolist() == blind


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["111"], True),
        (["101"], False),
        (["110", "111"], True),
        (["111", "111"], False),  # the first token sees the second
        (["110", "011"], False),
        (["010", "111"], False),
    ],
)
def test_a_mask_that_hides_only_the_future_is_none(
    rows: list[str], expected: bool
) -> None:
    mask = np.array([[char == "1" for char in row] for row in rows])
    assert is_causal(mask) == expected


@given(batches(), st.sampled_from([None, 3]))
def test_attention_over_groups_is_that_of_each_request(
    case: tuple[Batch, int], window: int | None
) -> None:
    """A paged attention in numpy reads nothing but the arrays of the groups."""
    batch, page_size = case
    metadata = build_metadata(batch, page_size)
    rng = np.random.default_rng(1)
    cache = rng.normal(size=(NUM_PAGES * page_size, DIM))
    query = rng.normal(size=(len(metadata.token_ids), DIM))
    found = np.full_like(query, np.nan)
    for group in plain_groups(batch, metadata):
        rows = np.arange(len(query)) if group.rows is None else group.rows
        packed = pack_masks(group.masks, window) if group.masks else None
        for index in range(len(group.requests)):
            own = rows[group.qo_indptr[index] : group.qo_indptr[index + 1]]
            keys = cache[context_of(group, index, page_size)]
            shape = (len(own), len(keys))
            if packed is None:
                last = np.arange(shape[0])[:, None] + shape[1] - shape[0]
                columns = np.arange(shape[1])
                is_seen = columns <= last
                if window is not None:  # FlashInfer's window_left is one less
                    is_seen &= columns + window - 1 >= last
            else:
                is_seen = read_bits(packed.bits[packed.byte_indptr[index] :], shape)
            found[own] = attend(query[own], keys, is_seen)[0]
    for index, forward in enumerate(batch.forwards):
        span = slice(*metadata.qo_indptr[index : index + 2].tolist())
        keys = cache[slots_of(forward, page_size)]
        expected = attend(query[span], keys, seen(forward, window))[0]
        np.testing.assert_allclose(found[span], expected, atol=1e-12)


@given(batches(is_masked=False), st.integers(1, 4))
def test_a_cascade_gives_what_each_request_alone_does(
    case: tuple[Batch, int], min_saved: int
) -> None:
    batch, page_size = case
    metadata = build_metadata(batch, page_size)
    cascade = find_cascade(metadata, min_saved=min_saved)
    if cascade is None:
        return
    assert cascade.num_saved >= min_saved
    counts = np.diff(metadata.page_indptr)
    whole = int(counts[cascade.requests].sum())
    levels = len(cascade.shared.page_ids) + len(cascade.own.page_ids)
    assert whole - levels == cascade.num_saved
    rng = np.random.default_rng(1)
    cache = rng.normal(size=(NUM_PAGES * page_size, DIM))
    queries = rng.normal(size=(len(metadata.token_ids), DIM))
    query = queries[cascade.rows]
    values, sums = np.zeros_like(query), np.zeros(len(query))
    for level, is_last in ((cascade.shared, False), (cascade.own, True)):
        assert level.qo_indptr[0] == 0
        assert level.qo_indptr[-1] == len(query)
        for index in range(len(level.last_page_lens)):
            rows = slice(*level.qo_indptr[index : index + 2].tolist())
            keys = cache[context_of(level, index, page_size)]
            assert len(keys) == level.kv_lens[index] > 0
            num_rows = len(query[rows])
            offset = len(keys) - num_rows if is_last else len(keys)
            is_seen = np.tri(num_rows, len(keys), offset, dtype=np.bool_)
            value, total = attend(query[rows], keys, is_seen)
            values[rows] += value * total[:, None]
            sums[rows] += total
    found = values / sums[:, None]
    own = cascade.own.qo_indptr
    for index, request in enumerate(cascade.requests.tolist()):
        forward = batch.forwards[request]
        span = slice(*metadata.qo_indptr[request : request + 2].tolist())
        keys = cache[slots_of(forward, page_size)]
        expected = attend(queries[span], keys, seen(forward))[0]
        np.testing.assert_allclose(
            found[own[index] : own[index + 1]], expected, atol=1e-9
        )


@given(batches(), st.integers(1, 4))
def test_a_batch_with_a_cascade_still_holds_every_request_once(
    case: tuple[Batch, int], min_saved: int
) -> None:
    batch, page_size = case
    metadata = build_metadata(batch, page_size)
    groups = split_batch(batch, metadata, min_saved=min_saved)
    found = sorted(r for group in groups for r in group.requests.tolist())
    assert found == list(range(len(batch.forwards)))
    tokens = len(metadata.token_ids)
    rows = [np.arange(tokens) if g.rows is None else g.rows for g in groups]
    assert sorted(np.concatenate(rows).tolist()) == list(range(tokens))
    assert len(groups) == 1 or all(group.rows is not None for group in groups)
    for group in groups:
        if isinstance(group, Cascade):
            masks = [batch.forwards[r].mask for r in group.requests.tolist()]
            assert all(mask is None or is_causal(mask) for mask in masks)


def naive_saving(tables: list[list[int]]) -> int:
    """Return the page reads that one common beginning of all saves."""
    shared = 0
    while all(len(t) > shared and t[shared] == tables[0][shared] for t in tables):
        shared += 1
    return (len(tables) - 1) * shared


@given(batches(is_masked=False), st.randoms())
def test_the_order_of_a_batch_changes_nothing_about_what_is_shared(
    case: tuple[Batch, int], random: Random
) -> None:
    batch, page_size = case
    shuffled = [*batch.forwards]
    random.shuffle(shuffled)
    found = [
        find_cascade(build_metadata(Batch(tuple(forwards)), page_size))
        for forwards in (batch.forwards, shuffled)
    ]
    saved = [0 if cascade is None else cascade.num_saved for cascade in found]
    assert saved[0] == saved[1]
    tables = [
        f.page_ids[: (f.kv_len - len(f.token_ids)) // page_size].tolist()
        for f in batch.forwards
    ]
    assert saved[0] >= naive_saving(tables)


def test_pages_are_worth_a_cascade_by_their_bytes() -> None:
    rule = CascadeRule(min_bytes=100, min_bytes_of_graph=1000)
    assert rule.min_saved(30, is_graph=False) == 4
    assert rule.min_saved(30, is_graph=True) == 34
    assert rule.min_saved(5000, is_graph=True) == 1


def test_forks_of_a_long_prompt_share_it_and_a_stranger_does_not() -> None:
    tables = [[0, 1, 2, 5], [0, 1, 2, 6], [9, 8, 7], [0, 1, 2, 4]]
    forwards = [
        ForwardRequest(
            np.zeros(1, np.int32),
            np.zeros(1, np.int32),
            np.array(table, np.int32),
            4 * len(table) - 1,
        )
        for table in tables
    ]
    cascade = find_cascade(build_metadata(Batch(tuple(forwards)), 4))
    assert cascade is not None
    assert cascade.num_saved == 6
    assert cascade.requests.tolist() == cascade.rows.tolist() == [0, 1, 3]
    assert cascade.shared.qo_indptr.tolist() == [0, 3]
    assert cascade.shared.page_ids.tolist() == [0, 1, 2]
    assert cascade.own.page_ids.tolist() == [5, 6, 4]


def test_every_batch_size_has_the_nearest_bucket() -> None:
    assert BUCKETS[:5] == (1, 2, 4, 8, 16)
    assert BUCKETS[-1] == 256
    for size in range(1, 257):
        bucket = bucket_for(size)
        assert bucket == min(b for b in BUCKETS if b >= size)
    assert bucket_for(257) is None


@given(batches(is_masked=False), st.integers(0, 3))
def test_padding_changes_no_request_and_touches_the_scratch_page_alone(
    case: tuple[Batch, int], spare: int
) -> None:
    batch, page_size = case
    forwards = [f for f in batch.forwards if len(f.token_ids) == 1]
    if not forwards:
        return
    metadata = build_metadata(Batch(tuple(forwards)), page_size)
    size = len(forwards) + spare
    padded = pad_decode(metadata, size, NUM_PAGES)
    assert padded.num_requests == len(forwards)
    for index in range(size):
        first, end = padded.page_indptr[index : index + 2].tolist()
        pages = padded.page_ids[first:end]
        kv_len = (len(pages) - 1) * page_size + padded.last_page_lens[index]
        assert kv_len == padded.kv_lens[index]
        slot = int(padded.append_slots[index])
        assert slot == kv_len - 1
        written = pages[slot // page_size] * page_size + slot % page_size
        if index < len(forwards):
            assert pages.tolist() == forwards[index].page_ids[: len(pages)].tolist()
            assert kv_len == forwards[index].kv_len
            assert written == metadata.write_slots[index]
            assert padded.positions[index] == forwards[index].positions[0]
            assert padded.token_ids[index] == forwards[index].token_ids[0]
        else:
            assert (pages.tolist(), kv_len) == ([NUM_PAGES], 1)
    for array in (padded.page_ids, padded.page_indptr, padded.append_slots):
        assert array.dtype == np.int32


def test_arrays_of_any_dtype_share_one_memory() -> None:
    arrays: dict[str, NDArray[Any]] = {
        "ids": np.arange(5, dtype=np.int32),
        "nothing": np.empty(0, np.int64),
        "points": np.array([0.1, 0.9]),
        "bits": np.arange(17, dtype=np.uint8),
        "table": np.arange(6, dtype=np.int64).reshape(2, 3)[:, ::-1],
    }
    layout = lay_out(arrays)
    memory = np.full(layout.num_bytes, 255, np.uint8)
    fill(memory, arrays, layout)
    end = 0
    for name, array in arrays.items():
        place = layout.places[name]
        assert place.start % ALIGNMENT == 0
        assert place.start >= end
        end = place.start + place.num_bytes
        found = memory[place.start : end].view(place.dtype).reshape(place.shape)
        assert found.tolist() == array.tolist()
    assert end <= layout.num_bytes
