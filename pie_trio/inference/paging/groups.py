"""Splits a batch into the parts that one kernel each can attend for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from pie_trio.inference.metadata import concatenate, indptr
from pie_trio.inference.paging.cascade import Cascade, find_cascade
from pie_trio.inference.paging.masks import is_causal

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pie_trio.engine_api import Batch
    from pie_trio.inference.metadata import BatchMetadata

__all__ = ["GroupKind", "PagedGroup", "append_places", "split_batch"]

GroupKind = Literal["decode", "prefill", "masked"]
"""One token each and no mask; any number of tokens and no mask; everything else."""


@dataclass(frozen=True, slots=True)
class PagedGroup:
    """Some requests of a batch, in its order. ``x_indptr[r]:x_indptr[r + 1]`` are request r's.

    A request's new tokens are the last ones of its context.

    Attributes:
        kind: What kernel they need.
        requests: ``[R]`` int64 into the batch.
        rows: int64, their new tokens among those of the batch; None where these are all.
        qo_indptr: ``[R + 1]`` int32 into their new tokens.
        page_indptr: ``[R + 1]`` int32 into ``page_ids``.
        page_ids: int32, in any order, and the same page perhaps several times.
        last_page_lens: ``[R]`` int32, tokens in the last page, 1 to ``page_size``.
        kv_lens: ``[R]`` int32.
        masks: ``[num_tokens, kv_len]`` bool of each; empty where the kind is another.
    """

    kind: GroupKind
    requests: NDArray[np.int64]
    rows: NDArray[np.int64] | None
    qo_indptr: NDArray[np.int32]
    page_indptr: NDArray[np.int32]
    page_ids: NDArray[np.int32]
    last_page_lens: NDArray[np.int32]
    kv_lens: NDArray[np.int32]
    masks: tuple[NDArray[np.bool_], ...] = ()


def split_batch(
    batch: Batch, metadata: BatchMetadata, *, min_saved: int | None = None
) -> tuple[PagedGroup | Cascade, ...]:
    """Return at most three groups, which together hold every request once.

    Decodes that share their batch with prefills go with these: one kernel more costs more than
    what the kernel for decodes saves.

    Args:
        batch: To split.
        metadata: Of the batch.
        min_saved: As of :func:`~.cascade.find_cascade`; None for no cascade.
    """
    masks: dict[int, NDArray[np.bool_]] = {
        index: forward.mask
        for index, forward in enumerate(batch.forwards)
        if forward.mask is not None and not is_causal(forward.mask)
    }
    plain, masked = np.arange(metadata.num_requests), np.array([*masks], np.int64)
    groups: list[PagedGroup | Cascade] = []
    if masks:
        plain = np.delete(plain, masked)
        groups.append(_group("masked", metadata, masked, tuple(masks.values())))
    if min_saved is not None:
        cascade = find_cascade(metadata, plain, min_saved=min_saved)
        if cascade is not None:
            plain = np.setdiff1d(plain, cascade.requests)
            groups.append(cascade)
    if len(plain):
        kind = _plain_kind(metadata.query_lens[plain])
        groups.append(_group(kind, metadata, plain))
    return tuple(groups)


def append_places(
    metadata: BatchMetadata,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return where the keys of the new tokens go, as requests and slots of their contexts.

    Returns:
        ``[num_tokens]`` int32, whose each token is; and ``[num_tokens]`` int32, the slot counted
        along that request's pages.
    """
    num_tokens = len(metadata.token_ids)
    if num_tokens == metadata.num_requests:  # all decode
        return np.arange(num_tokens, dtype=np.int32), metadata.kv_lens - 1
    lengths = metadata.query_lens
    owners = np.arange(metadata.num_requests, dtype=np.int32).repeat(lengths)
    first = metadata.kv_lens - lengths - metadata.qo_indptr[:-1]
    return owners, np.arange(num_tokens, dtype=np.int32) + first.repeat(lengths)


def _plain_kind(query_lens: NDArray[np.int32]) -> GroupKind:
    return "decode" if bool((query_lens == 1).all()) else "prefill"


def _group(
    kind: GroupKind,
    metadata: BatchMetadata,
    requests: NDArray[np.int64],
    masks: tuple[NDArray[np.bool_], ...] = (),
) -> PagedGroup:
    """Return a group of some requests, ascending."""
    if len(requests) == metadata.num_requests:
        return PagedGroup(
            kind,
            np.arange(metadata.num_requests),
            None,
            metadata.qo_indptr,
            metadata.page_indptr,
            metadata.page_ids,
            metadata.last_page_lens,
            metadata.kv_lens,
            masks,
        )
    starts, stops = metadata.qo_indptr[requests], metadata.qo_indptr[requests + 1]
    tables: list[NDArray[np.int32]] = [
        metadata.page_ids[metadata.page_indptr[r] : metadata.page_indptr[r + 1]]
        for r in requests.tolist()
    ]
    firsts: list[int] = starts.tolist()
    ends: list[int] = stops.tolist()
    return PagedGroup(
        kind,
        requests,
        np.concatenate([np.arange(a, b) for a, b in zip(firsts, ends, strict=True)]),
        indptr(stops - starts),
        indptr(np.array([len(table) for table in tables], np.int32)),
        concatenate(tables),
        metadata.last_page_lens[requests],
        metadata.kv_lens[requests],
        masks,
    )
