"""The products of adapters in numpy: they read the same tables, by address, tile by tile."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from pie_trio.inference.gpu.lora import LinearTables, Tiles


class PlainLora:
    """As :class:`~pie_trio.inference.gpu.lora.LoraKernels`; float32 alone.

    Attributes:
        block_rows: Rows of a tile.
        num_calls: Of either product.
    """

    def __init__(self, block_rows: int = 3) -> None:
        self.block_rows, self.num_calls = block_rows, 0

    def shrink(
        self, inputs: Tensor, tables: LinearTables, tiles: Tiles, low: Tensor
    ) -> None:
        self.num_calls += 1
        low.fill_(torch.nan)  # whatever was there
        for rows, places, adapter in walk(tiles):
            ranks = int(tables.numbers[adapter, 0])
            assert ranks <= low.shape[1] == tables.max_ranks
            if ranks:
                address = int(tables.pointers[adapter, 0])
                down = read_memory(address, (ranks, inputs.shape[1]))
                low[places, :ranks] = torch.from_numpy(inputs.numpy()[rows] @ down.T)

    def expand(
        self, low: Tensor, tables: LinearTables, tiles: Tiles, outputs: Tensor
    ) -> None:
        self.num_calls += 1
        for rows, places, adapter in walk(tiles):
            for part in range(tables.max_parts):
                numbers = tables.numbers[adapter, 1 + 4 * part : 5 + 4 * part].tolist()
                first_rank, rank, start, num_outputs = numbers
                assert num_outputs <= tables.max_outputs
                if num_outputs:
                    address = int(tables.pointers[adapter, 1 + part])
                    up = read_memory(address, (num_outputs, rank))
                    own = low.numpy()[places, first_rank : first_rank + rank]
                    columns = slice(start, start + num_outputs)
                    outputs.numpy()[rows, columns] += own @ up.T


def walk(tiles: Tiles) -> list[tuple[NDArray[np.int32], slice, int]]:
    """Return of each tile its rows, its places, and its adapter."""
    found: list[tuple[NDArray[np.int32], slice, int]] = []
    columns = (tiles.starts, tiles.sizes, tiles.adapters)
    for start, size, adapter in zip(*(c.tolist() for c in columns), strict=True):
        places = slice(start, start + size)
        found.append((tiles.order.numpy()[places], places, adapter))
    return found


def read_memory(address: int, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return the float32 numbers that lie at an address."""
    size = shape[0] * shape[1]
    pointer = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
    return np.ctypeslib.as_array(pointer, (size,)).reshape(shape)
