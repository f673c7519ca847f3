from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.engine_api import NO_SLOT, Batch, ForwardRequest, OutputSpec
from pie_trio.inference.metadata import build_metadata

if TYPE_CHECKING:
    from collections.abc import Sequence


def make_request(
    num_tokens: int,
    page_ids: Sequence[int],
    kv_len: int,
    rows: Sequence[int] | None = None,
) -> ForwardRequest:
    return ForwardRequest(
        token_ids=np.arange(100, 100 + num_tokens, dtype=np.int32),
        positions=np.arange(7, 7 + num_tokens, dtype=np.int32),
        page_ids=np.array(page_ids, np.int32),
        kv_len=kv_len,
        outputs=() if rows is None else (OutputSpec(np.array(rows, np.int32)),),
    )


def test_a_ragged_batch_is_flattened_in_order() -> None:
    prefill = make_request(3, [5, 2], 3, [2])
    decode = make_request(1, [9, 0, 4, 8], 9, [0])
    chunk = make_request(2, [7, 1], 8, [1, 0, 1])
    metadata = build_metadata(Batch((prefill, decode, chunk)), page_size=4)
    assert metadata.num_requests == 3
    assert metadata.token_ids.tolist() == [100, 101, 102, 100, 100, 101]
    assert metadata.positions.tolist() == [7, 8, 9, 7, 7, 8]
    assert metadata.write_slots.tolist() == [20, 21, 22, 16, 6, 7]
    assert metadata.qo_indptr.tolist() == [0, 3, 4, 6]
    assert metadata.query_lens.tolist() == [3, 1, 2]
    assert metadata.kv_indptr.tolist() == [0, 3, 12, 20]
    assert metadata.kv_lens.tolist() == [3, 9, 8]
    assert metadata.page_indptr.tolist() == [0, 1, 4, 6]  # spare pages are left out
    assert metadata.page_ids.tolist() == [5, 9, 0, 4, 7, 1]
    assert metadata.last_page_lens.tolist() == [3, 1, 4]


def test_the_types_are_those_that_devices_want() -> None:
    metadata = build_metadata(Batch((make_request(1, [0], 1, [0]),)), page_size=4)
    for name in metadata.__slots__:
        if name != "page_size":
            is_index = name in {"write_slots", "embed_rows"}
            assert getattr(metadata, name).dtype == (
                np.int64 if is_index else np.int32
            ), name


def test_an_empty_batch_has_empty_arrays() -> None:
    metadata = build_metadata(Batch(()), page_size=16)
    assert metadata.num_requests == 0
    assert metadata.qo_indptr.tolist() == [0]
    assert metadata.token_ids.size == metadata.write_slots.size == 0


def test_tokens_that_enter_from_a_slot_are_found() -> None:
    plain = make_request(2, [0], 2)
    mixed = replace(
        make_request(3, [1], 3), input_slots=np.array([7, NO_SLOT, 4], np.int32)
    )
    metadata = build_metadata(Batch((plain, mixed)), page_size=4)
    assert metadata.embed_rows.tolist() == [2, 4]
    assert metadata.embed_slots.tolist() == [7, 4]


def test_context_slots_are_padded_with_the_first_slot() -> None:
    requests = (make_request(1, [3], 2), make_request(1, [5, 1], 6))
    metadata = build_metadata(Batch(requests), page_size=4)
    assert metadata.context_slots(np.array([1, 0])).tolist() == [
        [20, 21, 22, 23, 4, 5],
        [12, 13, 12, 12, 12, 12],
    ]


@st.composite
def batches(draw: st.DrawFn) -> tuple[Batch, int]:
    page_size = draw(st.integers(1, 5))
    requests: list[ForwardRequest] = []
    for _ in range(draw(st.integers(0, 5))):
        kv_len = draw(st.integers(1, 17))
        num_tokens = draw(st.integers(1, kv_len))
        num_pages = -(-kv_len // page_size) + draw(st.integers(0, 2))
        pages = draw(
            st.lists(st.integers(0, 99), min_size=num_pages, max_size=num_pages)
        )
        rows = draw(st.none() | st.lists(st.integers(0, num_tokens - 1), max_size=4))
        requests.append(make_request(num_tokens, pages, kv_len, rows))
    return Batch(tuple(requests)), page_size


@given(batches())
def test_every_array_is_what_a_loop_over_the_requests_gives(
    case: tuple[Batch, int],
) -> None:
    batch, page_size = case
    metadata = build_metadata(batch, page_size)
    contexts = [
        [
            int(r.page_ids[i // page_size]) * page_size + i % page_size
            for i in range(r.kv_len)
        ]
        for r in batch.forwards
    ]
    for index, request in enumerate(batch.forwards):
        tokens = slice(*metadata.qo_indptr[index : index + 2])
        assert metadata.token_ids[tokens].tolist() == request.token_ids.tolist()
        assert metadata.positions[tokens].tolist() == request.positions.tolist()
        num_tokens = len(request.token_ids)
        assert metadata.write_slots[tokens].tolist() == contexts[index][-num_tokens:]
        assert metadata.context_slots(np.array([index])).tolist() == [contexts[index]]
        pages = metadata.page_ids[slice(*metadata.page_indptr[index : index + 2])]
        full = (len(pages) - 1) * page_size
        assert full + metadata.last_page_lens[index] == request.kv_len
        assert pages.tolist() == request.page_ids[: len(pages)].tolist()
    assert metadata.kv_lens.tolist() == [r.kv_len for r in batch.forwards]
    if not contexts:
        return
    everything = metadata.context_slots(np.arange(len(contexts))).tolist()
    for padded, slots in zip(everything, contexts, strict=True):
        assert padded[: len(slots)] == slots
        assert set(padded[len(slots) :]) <= {slots[0]}
