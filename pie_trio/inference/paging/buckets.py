"""Decode batches of a few fixed sizes: what a graph was captured for is what it replays."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pie_trio.inference.metadata import BatchMetadata

__all__ = ["BUCKETS", "PaddedDecode", "bucket_for", "pad_decode"]

BUCKETS = (1, 2, 4, *range(8, 257, 8))
"""Batch sizes; no batch of 8 or more is padded by more than 7 requests."""


@dataclass(frozen=True, slots=True)
class PaddedDecode:
    """A decode batch of ``B`` requests with one token each, of which the last may be padding.

    A padding request has one slot, the first one of the scratch page, which no other request
    has: what it writes and reads there is of no consequence.

    Attributes:
        num_requests: Real ones; they come first.
        token_ids: ``[B]`` int32.
        positions: ``[B]`` int32.
        append_slots: ``[B]`` int32, where the new keys go, counted along a request's pages.
        page_indptr: ``[B + 1]`` int32.
        page_ids: int32.
        last_page_lens: ``[B]`` int32.
        kv_lens: ``[B]`` int32.
    """

    num_requests: int
    token_ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    append_slots: NDArray[np.int32]
    page_indptr: NDArray[np.int32]
    page_ids: NDArray[np.int32]
    last_page_lens: NDArray[np.int32]
    kv_lens: NDArray[np.int32]


def bucket_for(num_requests: int, buckets: Sequence[int] = BUCKETS) -> int | None:
    """Return the smallest bucket that holds so many requests; None if none does.

    Args:
        num_requests: At least one.
        buckets: Ascending.
    """
    place = bisect_left(buckets, num_requests)
    return buckets[place] if place < len(buckets) else None


def pad_decode(metadata: BatchMetadata, bucket: int, scratch_page: int) -> PaddedDecode:
    """Fill a batch of decodes up to a bucket.

    Args:
        metadata: Of a batch in which each request has one new token.
        bucket: At least as many as these.
        scratch_page: A page of the device that the control layer does not know of.
    """
    count = metadata.num_requests
    assert len(metadata.token_ids) == count <= bucket, "one token each, and they fit"
    spare = bucket - count
    last = int(metadata.page_indptr[-1])
    padding = np.arange(last + 1, last + spare + 1, dtype=np.int32)
    return PaddedDecode(
        num_requests=count,
        token_ids=_padded(metadata.token_ids, spare, 0),
        positions=_padded(metadata.positions, spare, 0),
        append_slots=_padded(metadata.kv_lens - 1, spare, 0),
        page_indptr=np.concatenate((metadata.page_indptr, padding)),
        page_ids=_padded(metadata.page_ids, spare, scratch_page),
        last_page_lens=_padded(metadata.last_page_lens, spare, 1),
        kv_lens=_padded(metadata.kv_lens, spare, 1),
    )


def _padded(values: NDArray[np.int32], spare: int, value: int) -> NDArray[np.int32]:
    return np.concatenate((values, np.full(spare, value, np.int32)))
