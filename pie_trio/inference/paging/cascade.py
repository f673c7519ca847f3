"""Requests that begin with the same pages, so that these need to be read only once for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pie_trio.inference.metadata import concatenate, indptr

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pie_trio.inference.metadata import BatchMetadata

__all__ = ["Cascade", "Level", "find_cascade"]


@dataclass(frozen=True, slots=True)
class Level:
    """Keys that some of the new tokens attend to, as for any batch of requests.

    Attributes:
        qo_indptr: ``[R + 1]`` int32 into the new tokens of the batch.
        page_indptr: ``[R + 1]`` int32.
        page_ids: int32.
        last_page_lens: ``[R]`` int32; 0 where there are no pages.
    """

    qo_indptr: NDArray[np.int32]
    page_indptr: NDArray[np.int32]
    page_ids: NDArray[np.int32]
    last_page_lens: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Cascade:
    """A batch in two levels, whose results are merged by their sums of exponentials.

    Attributes:
        shared: Whole pages from the beginning, for runs of requests that all have them; every
            new token sees all of it.
        own: What is left, for each request; the new tokens are its end.
        num_saved: Page reads that are saved, of all runs together.
    """

    shared: Level
    own: Level
    num_saved: int


def find_cascade(metadata: BatchMetadata, *, min_saved: int = 1) -> Cascade | None:
    """Find runs of neighbours with a common beginning.

    Args:
        metadata: Of a batch without masks and windows.
        min_saved: Fewer page reads saved are not worth a second kernel.

    Returns:
        None where nothing is worth it.
    """
    tables = [
        metadata.page_ids[start:stop]
        for start, stop in zip(
            metadata.page_indptr[:-1], metadata.page_indptr[1:], strict=True
        )
    ]
    # Pages that were full before this step: what is written now is nobody else's.
    full = (metadata.kv_lens - metadata.query_lens) // metadata.page_size
    runs = _find_runs(tables, full.tolist())
    num_saved = sum((stop - start - 1) * shared for start, stop, shared in runs)
    if num_saved < min_saved:
        return None
    firsts = [start for start, _, _ in runs]
    lengths = [shared for _, _, shared in runs]
    of_request = [shared for start, stop, shared in runs for _ in range(start, stop)]
    rest = [t[n:] for t, n in zip(tables, of_request, strict=True)]
    counts = np.array(lengths, np.int32)
    return Cascade(
        shared=Level(
            metadata.qo_indptr[[*firsts, metadata.num_requests]],
            indptr(counts),
            concatenate([tables[start][:n] for start, _, n in runs]),
            np.where(counts > 0, np.int32(metadata.page_size), np.int32(0)),
        ),
        own=Level(
            metadata.qo_indptr,
            indptr(np.array([len(table) for table in rest], np.int32)),
            concatenate(rest),
            metadata.last_page_lens,
        ),
        num_saved=num_saved,
    )


def _find_runs(
    tables: list[NDArray[np.int32]], full: list[int]
) -> list[tuple[int, int, int]]:
    """Return first request, end, and number of shared pages of each run, in order.

    A run grows as long as that saves more reads than it loses by a shorter common beginning.
    """
    runs: list[tuple[int, int, int]] = []
    start, shared = 0, full[0]
    for index in range(1, len(tables)):
        common = _common(tables[start][:shared], tables[index][: full[index]])
        if (index - start) * common <= (index - start - 1) * shared:
            runs.append((start, index, shared if index - start > 1 else 0))
            start, shared = index, full[index]
        else:
            shared = common
    size = len(tables) - start
    runs.append((start, len(tables), shared if size > 1 else 0))
    return runs


def _common(first: NDArray[np.int32], second: NDArray[np.int32]) -> int:
    size = min(len(first), len(second))
    different = np.flatnonzero(first[:size] != second[:size])
    return int(different[0]) if len(different) else size
