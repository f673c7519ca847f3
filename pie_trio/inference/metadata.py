"""From a batch to the flat arrays that every backend reads; numpy only, no device.

A *slot* is the place of one token in the cache: ``page_id * page_size + offset``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from pie_trio.engine_api import Batch

__all__ = ["BatchMetadata", "build_metadata"]


@dataclass(frozen=True, slots=True)
class BatchMetadata:
    """A batch of ``B`` requests, flattened. ``x_indptr[b]:x_indptr[b + 1]`` is request b's.

    Attributes:
        page_size: Tokens in a page.
        token_ids: ``[num_tokens]`` int32, the new tokens of all requests.
        positions: ``[num_tokens]`` int32.
        write_slots: ``[num_tokens]`` int64, where the keys and values of each go.
        qo_indptr: ``[B + 1]`` int32 into the new tokens.
        kv_indptr: ``[B + 1]`` int32, running sum of the context lengths after this forward.
        page_indptr: ``[B + 1]`` int32 into ``page_ids``.
        page_ids: ``[num_used_pages]`` int32, those that hold the context; no spare ones.
        last_page_lens: ``[B]`` int32, tokens in the last used page, 1 to ``page_size``.
        output_indptr: ``[B + 1]`` int32 into ``output_rows``.
        output_rows: ``[num_rows]`` int64 indices into the new tokens of the whole batch.
    """

    page_size: int
    token_ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    write_slots: NDArray[np.int64]
    qo_indptr: NDArray[np.int32]
    kv_indptr: NDArray[np.int32]
    page_indptr: NDArray[np.int32]
    page_ids: NDArray[np.int32]
    last_page_lens: NDArray[np.int32]
    output_indptr: NDArray[np.int32]
    output_rows: NDArray[np.int64]

    @property
    def num_requests(self) -> int:
        """Forwards in the batch."""
        return len(self.last_page_lens)

    @property
    def query_lens(self) -> NDArray[np.int32]:
        """``[B]`` int32, new tokens of each request."""
        return np.diff(self.qo_indptr)

    @property
    def kv_lens(self) -> NDArray[np.int32]:
        """``[B]`` int32, slots in use of each request after this forward."""
        return np.diff(self.kv_indptr)

    def context_slots(self, requests: Sequence[int]) -> NDArray[np.int64]:
        """Return the slots of some requests' contexts, in order, as a rectangle.

        Args:
            requests: Indices into the batch.

        Returns:
            ``[len(requests), longest kv_len]`` int64. Rows past a request's length repeat its
            first slot: mask them.
        """
        chosen = np.asarray(requests, dtype=np.int64)
        kv_lens = self.kv_lens[chosen, None]  # [R, 1]
        indices = np.arange(int(kv_lens.max(initial=0)))[None, :]  # [1, S]
        indices = np.where(indices < kv_lens, indices, 0)  # [R, S]
        pages = self.page_ids[
            self.page_indptr[chosen, None] + indices // self.page_size
        ]
        return _slots(pages, indices, self.page_size)


def build_metadata(batch: Batch, page_size: int) -> BatchMetadata:
    """Flatten a batch whose shapes are right; values are not looked at."""
    forwards = batch.forwards
    query_lens = _lengths(len(f.token_ids) for f in forwards)
    kv_lens = _lengths(f.kv_len for f in forwards)
    num_pages = -(-kv_lens // page_size)
    qo_indptr, page_indptr = _indptr(query_lens), _indptr(num_pages)
    page_ids = _concatenate(
        [f.page_ids[:n] for f, n in zip(forwards, num_pages.tolist(), strict=True)]
    )
    rows = [
        np.empty(0, np.int32) if f.outputs is None else f.outputs.rows for f in forwards
    ]
    row_counts = _lengths(len(r) for r in rows)

    # The slot of a new token, counted along its own request's pages, then physically.
    num_tokens = int(qo_indptr[-1])
    first_index = kv_lens - query_lens - qo_indptr[:-1]
    indices = np.arange(num_tokens) + np.repeat(first_index, query_lens)
    pages = page_ids[np.repeat(page_indptr[:-1], query_lens) + indices // page_size]
    return BatchMetadata(
        page_size=page_size,
        token_ids=_concatenate([f.token_ids for f in forwards]),
        positions=_concatenate([f.positions for f in forwards]),
        write_slots=_slots(pages, indices, page_size),
        qo_indptr=qo_indptr,
        kv_indptr=_indptr(kv_lens),
        page_indptr=page_indptr,
        page_ids=page_ids,
        last_page_lens=(kv_lens - 1) % page_size + 1,
        output_indptr=_indptr(row_counts),
        output_rows=_concatenate(rows).astype(np.int64)
        + np.repeat(qo_indptr[:-1], row_counts),
    )


def _slots(
    pages: NDArray[np.int32], indices: NDArray[np.int64], page_size: int
) -> NDArray[np.int64]:
    """Return the slots of the tokens at ``indices`` of a context, which lie in ``pages``."""
    slots: NDArray[np.int64] = pages.astype(np.int64) * page_size + indices % page_size
    return slots


def _lengths(values: Iterable[int]) -> NDArray[np.int32]:
    return np.fromiter(values, dtype=np.int32)


def _indptr(lengths: NDArray[np.int32]) -> NDArray[np.int32]:
    indptr = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=indptr[1:])
    return indptr


def _concatenate(parts: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    return np.concatenate(parts) if parts else np.empty(0, np.int32)
