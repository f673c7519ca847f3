"""From a batch to the flat arrays that every backend reads; numpy only, no device.

A *slot* is the place of one token in the cache: ``page_id * page_size + offset``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from pie_trio.engine_api import NO_SLOT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pie_trio.engine_api import Batch

__all__ = ["BatchMetadata", "build_metadata", "concatenate", "indptr"]

_NO_ROWS = np.empty(0, np.int64)
_NO_SLOTS = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class BatchMetadata:
    """The ``B`` forwards of a batch, flattened. ``x_indptr[b]:x_indptr[b + 1]`` is forward b's.

    Attributes:
        page_size: Tokens in a page.
        token_ids: ``[num_tokens]`` int32, the new tokens of all forwards.
        positions: ``[num_tokens]`` int32.
        write_slots: ``[num_tokens]`` int64, where the keys and values of each go.
        query_lens: ``[B]`` int32, new tokens of each forward.
        kv_lens: ``[B]`` int32, slots in use of each after this step.
        qo_indptr: ``[B + 1]`` int32 into the new tokens.
        page_indptr: ``[B + 1]`` int32 into ``page_ids``.
        page_ids: ``[num_used_pages]`` int32, those that hold the context; no spare ones.
        embed_rows: ``[num_embeds]`` int64, the new tokens that enter as a stored hidden state.
        embed_slots: ``[num_embeds]`` int32, where that lies.
    """

    page_size: int
    token_ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    write_slots: NDArray[np.int64]
    query_lens: NDArray[np.int32]
    kv_lens: NDArray[np.int32]
    qo_indptr: NDArray[np.int32]
    page_indptr: NDArray[np.int32]
    page_ids: NDArray[np.int32]
    embed_rows: NDArray[np.int64]
    embed_slots: NDArray[np.int32]

    @property
    def num_requests(self) -> int:
        """Forwards in the batch."""
        return len(self.kv_lens)

    @property
    def kv_indptr(self) -> NDArray[np.int32]:
        """``[B + 1]`` int32, running sum of the context lengths."""
        return indptr(self.kv_lens)

    @property
    def last_page_lens(self) -> NDArray[np.int32]:
        """``[B]`` int32, tokens in the last used page, 1 to ``page_size``."""
        return (self.kv_lens - 1) % self.page_size + 1

    def context_slots(self, requests: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the slots of some forwards' contexts, in order, as a rectangle.

        Args:
            requests: Indices into the batch; at least one.

        Returns:
            ``[len(requests), longest kv_len]`` int64. Rows past a request's length repeat its
            first slot: mask them.
        """
        page_size = self.page_size
        if len(requests) == 1:
            index = int(requests[0])
            longest = shortest = int(self.kv_lens[index])
            start, stop = self.page_indptr[index : index + 2].tolist()
            table = self.page_ids[None, start:stop]  # [1, P]
        else:
            lengths = self.kv_lens[requests].tolist()
            longest, shortest = max(lengths), min(lengths)
            starts, last = self.page_indptr[requests], self.page_indptr[requests + 1]
            last -= 1
            columns = np.arange(-(-longest // page_size), dtype=np.int32)
            table = self.page_ids[np.minimum(starts[:, None] + columns, last[:, None])]
        # By pages: a division for each slot of 256 contexts took milliseconds.
        first_slots = table.astype(np.int64) * page_size  # [R, P]
        slots = (first_slots[:, :, None] + np.arange(page_size)).reshape(len(table), -1)
        slots = slots[:, :longest]
        if shortest < longest:
            is_spare = (
                np.arange(longest, dtype=np.int32) >= self.kv_lens[requests, None]
            )
            np.copyto(slots, slots[:, :1].copy(), where=is_spare)
        return slots


def build_metadata(batch: Batch, page_size: int) -> BatchMetadata:
    """Flatten the forwards of a batch whose shapes are right; values are not looked at."""
    # Lists where there is a number a request: for the usual few requests each numpy call
    # takes longer than all the numbers.
    forwards = batch.forwards
    kv_lens = [f.kv_len for f in forwards]
    page_counts = [-(-kv_len // page_size) for kv_len in kv_lens]
    page_starts = [0, *accumulate(page_counts)]
    page_ids = concatenate(
        [
            f.page_ids[:n].astype(np.int32, copy=False)
            for f, n in zip(forwards, page_counts, strict=True)
        ]
    )
    page_indptr = np.array(page_starts, np.int32)
    token_ids = concatenate([f.token_ids for f in forwards])
    if len(token_ids) == len(forwards):  # all decode: each writes its last slot
        query_lens = np.array([1] * len(forwards), np.int32)
        qo_indptr = np.arange(len(forwards) + 1, dtype=np.int32)
        offsets = [(kv_len - 1) % page_size for kv_len in kv_lens]
        write_slots = page_ids[page_indptr[1:] - 1].astype(np.int64) * page_size
        write_slots += np.array(offsets, np.int64)
    else:
        query_lens = np.array([len(f.token_ids) for f in forwards], np.int32)
        qo_indptr = indptr(query_lens)
        # The slot of a new token, counted along its own request's pages, then physically.
        indices = np.arange(len(token_ids), dtype=np.int32)
        first_index = np.array(kv_lens, np.int32) - query_lens - qo_indptr[:-1]
        indices += first_index.repeat(query_lens)
        pages = page_ids[page_indptr[:-1].repeat(query_lens) + indices // page_size]
        write_slots = pages.astype(np.int64) * page_size + indices % page_size
    embed_rows, embed_slots = _embeds(batch, qo_indptr)
    return BatchMetadata(
        page_size=page_size,
        token_ids=token_ids,
        positions=concatenate([f.positions for f in forwards]),
        write_slots=write_slots,
        query_lens=query_lens,
        kv_lens=np.array(kv_lens, np.int32),
        qo_indptr=qo_indptr,
        page_indptr=page_indptr,
        page_ids=page_ids,
        embed_rows=embed_rows,
        embed_slots=embed_slots,
    )


def indptr(lengths: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return ``[len(lengths) + 1]`` int32: 0, then the running sum."""
    result = np.zeros(len(lengths) + 1, np.int32)
    np.add.accumulate(lengths, out=result[1:])
    return result


def concatenate(parts: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    """Return all ``parts``, one after the other, in an array of its own."""
    return np.concatenate(parts) if parts else np.empty(0, np.int32)


def _embeds(
    batch: Batch, qo_indptr: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    rows, slots = [_NO_ROWS], [_NO_SLOTS]
    for index, forward in enumerate(batch.forwards):
        if forward.input_slots is not None:
            own = np.flatnonzero(forward.input_slots != NO_SLOT)
            rows.append(own + int(qo_indptr[index]))
            slots.append(forward.input_slots[own])
    if len(rows) == 1:
        return _NO_ROWS, _NO_SLOTS
    return np.concatenate(rows), np.concatenate(slots)
