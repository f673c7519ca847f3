"""Who holds which physical page, as a map that fits on a screen and into few bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from pie_trio.control.pages import PagePool

__all__ = [
    "FIRST_INSTANCE",
    "FREE",
    "KEPT",
    "OTHERS",
    "SHARED",
    "encode_changes",
    "encode_runs",
    "hide_others",
    "map_pages",
    "shrink",
]

FREE = 0
"""The code of a page that is nobody's."""
KEPT = 1
"""Of one that exports or commands alone keep."""
SHARED = 2
"""Of one of several instances."""
OTHERS = 3
"""Of one of other owners, or of an instance that another one has launched."""
FIRST_INSTANCE = 4
"""From here on there is a code for each instance."""


def map_pages(
    pool: PagePool, holders: Iterable[tuple[int, Iterable[int]]]
) -> NDArray[np.int32]:
    """Return the code of each physical page: ``[num_pages]`` int32.

    Args:
        pool: Of a model.
        holders: The code of each instance, and the virtual pages of its handles; a page may be
            among them several times.
    """
    codes = np.zeros(pool.num_pages, np.int32)
    codes[pool.physical[pool.physical >= 0]] = KEPT
    for code, pages in holders:
        places = pool.physical[np.fromiter(pages, np.intp)]
        places = places[places >= 0]
        codes[places] = np.where(codes[places] == KEPT, code, SHARED)
    return codes


def hide_others(
    codes: NDArray[np.int32], own: Iterable[int], max_cells: int
) -> tuple[NDArray[np.int32], int]:
    """Return the map as one owner may see it, with at most so many cells.

    Returns:
        ``[num_cells]`` int32, and how many pages a cell stands for.
    """
    own_codes = np.fromiter(own, np.int32)
    is_foreign = (codes >= FIRST_INSTANCE) & ~np.isin(codes, own_codes)
    return shrink(np.where(is_foreign, np.int32(OTHERS), codes), max_cells)


def shrink(codes: NDArray[np.int32], max_cells: int) -> tuple[NDArray[np.int32], int]:
    """Return at most ``max_cells`` cells, each of equally many pages, and how many these are.

    A cell has the code in the middle of its pages' codes, in order: the one of most of them,
    if there is one.
    """
    per_cell = max(1, -(-len(codes) // max_cells))
    if per_cell == 1:
        return codes, 1
    num_cells = -(-len(codes) // per_cell)
    padded = np.full(num_cells * per_cell, codes[-1], np.int32)
    padded[: len(codes)] = codes
    cells = np.sort(padded.reshape(num_cells, per_cell), axis=1)
    return cells[:, per_cell // 2], per_cell


def encode_runs(cells: NDArray[np.int32]) -> list[int]:
    """Return ``[count, code, count, code, ...]``."""
    if not len(cells):
        return []
    begins = np.concatenate([[0], np.flatnonzero(np.diff(cells)) + 1])
    counts = np.diff(np.concatenate([begins, [len(cells)]]))
    runs: list[int] = np.stack([counts, cells[begins]], axis=1).ravel().tolist()
    return runs


def encode_changes(before: NDArray[np.int32], after: NDArray[np.int32]) -> list[int]:
    """Return ``[begin, count, code, ...]``: the runs in which two maps of one size differ."""
    changed = np.flatnonzero(before != after)
    if not len(changed):
        return []
    codes = after[changed]
    is_begin = np.ones(len(changed), np.bool_)
    is_begin[1:] = (np.diff(changed) != 1) | (np.diff(codes) != 0)
    begins = np.flatnonzero(is_begin)
    counts = np.diff(np.concatenate([begins, [len(changed)]]))
    runs = np.stack([changed[begins], counts, codes[begins]], axis=1)
    changes: list[int] = runs.ravel().tolist()
    return changes
