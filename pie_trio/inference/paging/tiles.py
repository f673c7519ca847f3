"""Rows of a batch by the adapter that they have, cut into pieces of the size that kernels take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["RowTiles", "tile_rows"]


@dataclass(frozen=True, slots=True)
class RowTiles:
    """``T`` tiles, each of which has rows of one adapter.

    Attributes:
        order: ``[n]`` int32, the rows that have an adapter, those of one side by side.
        starts: ``[T]`` int32, the first place of a tile in ``order``.
        sizes: ``[T]`` int32, at least one row each.
        adapters: ``[T]`` int32, whose rows they are.
    """

    order: NDArray[np.int32]
    starts: NDArray[np.int32]
    sizes: NDArray[np.int32]
    adapters: NDArray[np.int32]


def tile_rows(
    adapters: Sequence[int], query_lens: NDArray[np.int32], max_size: int
) -> RowTiles:
    """Cut the new tokens of a batch.

    Args:
        adapters: Of each request, counted from zero without a gap; -1 for none.
        query_lens: ``[B]`` int32.
        max_size: Rows of a tile.
    """
    of_row = np.array(adapters, np.int32).repeat(query_lens)
    order = np.argsort(of_row, kind="stable").astype(np.int32)
    num_plain = int(np.count_nonzero(of_row < 0))
    counts = np.bincount(of_row[of_row >= 0])
    num_tiles = -(-counts // max_size)
    owners = np.arange(len(counts), dtype=np.int32).repeat(num_tiles)
    # A tile's place among those of its adapter.
    places = np.arange(len(owners)) - (num_tiles.cumsum() - num_tiles).repeat(num_tiles)
    firsts = places * max_size
    starts = firsts + (counts.cumsum() - counts).repeat(num_tiles)
    sizes = np.minimum(max_size, counts.repeat(num_tiles) - firsts)
    return RowTiles(
        order[num_plain:], starts.astype(np.int32), sizes.astype(np.int32), owners
    )
