"""Requests that begin with the same pages, so that these need to be read only once for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pie_trio.inference.metadata import concatenate, indptr

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pie_trio.inference.metadata import BatchMetadata

__all__ = ["Cascade", "CascadeRule", "Level", "find_cascade"]


@dataclass(frozen=True, slots=True)
class CascadeRule:
    """When a common beginning is read only once: where not reading it saves more than it costs.

    It costs two kernels and a merge instead of one kernel in each layer, and one more plan. A step
    that a graph could do has to launch all of its kernels one by one besides. The numbers are
    estimates: half a millisecond and two of a device that reads 4 TB/s.

    Attributes:
        min_bytes: Of keys and values of all layers that are not read, in a step that runs kernel
            by kernel anyway.
        min_bytes_of_graph: In a step that a graph could do.
    """

    min_bytes: int = 2 << 30
    min_bytes_of_graph: int = 8 << 30

    def min_saved(self, page_bytes: int, *, is_graph: bool) -> int:
        """Return the pages that have to be saved at least, of so many bytes in all layers."""
        num_bytes = self.min_bytes_of_graph if is_graph else self.min_bytes
        return max(1, -(-num_bytes // page_bytes))


@dataclass(frozen=True, slots=True)
class Level:
    """Keys that some new tokens attend to, as for any batch of requests.

    Attributes:
        qo_indptr: ``[R + 1]`` int32 into the new tokens of the cascade.
        page_indptr: ``[R + 1]`` int32.
        page_ids: int32.
        last_page_lens: ``[R]`` int32.
        kv_lens: ``[R]`` int32, at least one each.
    """

    qo_indptr: NDArray[np.int32]
    page_indptr: NDArray[np.int32]
    page_ids: NDArray[np.int32]
    last_page_lens: NDArray[np.int32]
    kv_lens: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Cascade:
    """Requests in two levels, whose results are merged by their sums of exponentials.

    Attributes:
        requests: ``[R]`` int64 into the batch, those with a common beginning side by side.
        rows: int64, their new tokens among those of the batch, in that order.
        shared: Whole pages from the beginning, for runs of requests that all have them; every
            new token sees all of it.
        own: What is left, for each request; the new tokens are its end.
        num_saved: Page reads that are saved, of all runs together.
    """

    requests: NDArray[np.int64]
    rows: NDArray[np.int64]
    shared: Level
    own: Level
    num_saved: int


def find_cascade(
    metadata: BatchMetadata,
    requests: NDArray[np.int64] | None = None,
    *,
    min_saved: int = 1,
) -> Cascade | None:
    """Find the requests that begin with the same pages, wherever they are in the batch.

    Args:
        metadata: Of a batch whose layers have no windows.
        requests: Of the batch, without masks; None for all.
        min_saved: Fewer page reads saved are not worth a second kernel; at least one.

    Returns:
        None where nothing is worth it.
    """
    if requests is None:
        requests = np.arange(metadata.num_requests)
    # Pages that were full before this step: what is written now is nobody else's.
    before = metadata.kv_lens[requests] - metadata.query_lens[requests]
    full = before // metadata.page_size
    # Of the longest nothing can be saved; most batches end here.
    if not len(full) or int(full.sum()) - int(full.max()) < min_saved:
        return None
    chosen = _with_common_first_page(metadata, requests, full)
    tables: list[NDArray[np.int32]] = [
        metadata.page_ids[metadata.page_indptr[r] : metadata.page_indptr[r + 1]]
        for r in requests[chosen].tolist()
    ]
    lengths: list[int] = full[chosen].tolist()
    # As bytes with the highest first they are ordered as the numbers are, and much faster.
    keys = [
        table[:length].astype(">i4").tobytes()
        for table, length in zip(tables, lengths, strict=True)
    ]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    tables, lengths = [tables[i] for i in order], [lengths[i] for i in order]
    runs = [run for run in _find_runs(tables, lengths) if run[1] - run[0] > 1]
    num_saved = sum((stop - start - 1) * shared for start, stop, shared in runs)
    if num_saved < min_saved:
        return None
    kept = [i for start, stop, _ in runs for i in range(start, stop)]
    own = requests[chosen[[order[i] for i in kept]]]
    return _cascade(metadata, own, runs, [tables[i] for i in kept], num_saved)


def _with_common_first_page(
    metadata: BatchMetadata, requests: NDArray[np.int64], full: NDArray[np.int32]
) -> NDArray[np.int64]:
    """Return which of the requests begin with a page that another one begins with as well."""
    candidates = np.flatnonzero(full > 0)
    firsts = metadata.page_ids[metadata.page_indptr[requests[candidates]]]
    _, places, counts = np.unique(firsts, return_inverse=True, return_counts=True)
    return candidates[counts[places] > 1]


def _cascade(
    metadata: BatchMetadata,
    requests: NDArray[np.int64],
    runs: list[tuple[int, int, int]],
    tables: list[NDArray[np.int32]],
    num_saved: int,
) -> Cascade:
    """Lay the requests of runs out, which follow on each other."""
    page_size = metadata.page_size
    query_lens, kv_lens = metadata.query_lens[requests], metadata.kv_lens[requests]
    qo_indptr = indptr(query_lens)
    sizes = [stop - start for start, stop, _ in runs]
    counts = np.array([shared for _, _, shared in runs], np.int32)
    ends = np.cumsum(sizes)
    firsts: list[int] = (ends - sizes).tolist()
    of_request = counts.repeat(sizes)
    rest: list[NDArray[np.int32]] = [
        t[n:] for t, n in zip(tables, of_request.tolist(), strict=True)
    ]
    starts: list[int] = metadata.qo_indptr[requests].tolist()
    lengths: list[int] = query_lens.tolist()
    rows = [
        np.arange(start, start + length)
        for start, length in zip(starts, lengths, strict=True)
    ]
    return Cascade(
        requests=requests,
        rows=np.concatenate(rows),
        shared=Level(
            qo_indptr[[0, *ends]],
            indptr(counts),
            concatenate(
                [tables[i][: run[2]] for i, run in zip(firsts, runs, strict=True)]
            ),
            np.full(len(runs), page_size, np.int32),
            counts * np.int32(page_size),
        ),
        own=Level(
            qo_indptr,
            indptr(np.array([len(table) for table in rest], np.int32)),
            concatenate(rest),
            metadata.last_page_lens[requests],
            kv_lens - of_request * np.int32(page_size),
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
    start, shared = 0, full[0] if full else 0
    for index in range(1, len(tables)):
        common = _common(tables[start][:shared], tables[index][: full[index]])
        if (index - start) * common <= (index - start - 1) * shared:
            runs.append((start, index, shared))
            start, shared = index, full[index]
        else:
            shared = common
    if tables:
        runs.append((start, len(tables), shared))
    return runs


def _common(first: NDArray[np.int32], second: NDArray[np.int32]) -> int:
    size = min(len(first), len(second))
    different = np.flatnonzero(first[:size] != second[:size])
    return int(different[0]) if len(different) else size
