"""The two kernels of adapters, in Triton: down to the ranks, and up again.

A program takes a tile of rows, all of which have the same adapter, and finds the weights of that
adapter by their address. So one launch serves all adapters of a batch. Sums are float32, and in
one order: the same row gives the same numbers in any batch.
"""
# ruff: noqa: ANN001, N803 -- Triton's way
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false, reportInvalidTypeForm=false

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from pie_trio.inference.gpu.lora import LinearTables, Tiles

__all__ = ["TritonLora"]

# Triton has no types. What it compiles are the sources of the two functions below, where it
# refuses any annotation but its own.
triton: Any = import_module("triton")
tl: Any = import_module("triton.language")

BLOCK_ROWS = 16
BLOCK_RANKS = 16
BLOCK_INPUTS = 64
BLOCK_OUTPUTS = 64


class TritonLora:
    """See :class:`~.lora.LoraKernels`, here and below."""

    block_rows = BLOCK_ROWS

    def shrink(  # noqa: D102
        self, inputs: Tensor, tables: LinearTables, tiles: Tiles, low: Tensor
    ) -> None:
        grid = (len(tiles.starts), triton.cdiv(tables.max_ranks, BLOCK_RANKS))
        _shrink[grid](
            inputs,
            tables.pointers,
            tables.numbers,
            tiles.order,
            tiles.starts,
            tiles.sizes,
            tiles.adapters,
            low,
            inputs.shape[1],
            inputs.stride(0),
            low.stride(0),
            tables.pointers.stride(0),
            tables.numbers.stride(0),
            BLOCK_ROWS=BLOCK_ROWS,
            BLOCK_RANKS=BLOCK_RANKS,
            BLOCK_INPUTS=BLOCK_INPUTS,
        )

    def expand(  # noqa: D102
        self, low: Tensor, tables: LinearTables, tiles: Tiles, outputs: Tensor
    ) -> None:
        num_blocks = triton.cdiv(tables.max_outputs, BLOCK_OUTPUTS)
        grid = (len(tiles.starts), tables.max_parts, num_blocks)
        _expand[grid](
            low,
            tables.pointers,
            tables.numbers,
            tiles.order,
            tiles.starts,
            tiles.sizes,
            tiles.adapters,
            outputs,
            low.stride(0),
            outputs.stride(0),
            tables.pointers.stride(0),
            tables.numbers.stride(0),
            BLOCK_ROWS=BLOCK_ROWS,
            BLOCK_RANKS=BLOCK_RANKS,
            BLOCK_OUTPUTS=BLOCK_OUTPUTS,
        )


def _shrink_kernel(  # type: ignore[no-untyped-def]
    inputs,
    pointers,
    numbers,
    order,
    starts,
    sizes,
    adapters,
    low,
    num_inputs,
    input_stride,
    low_stride,
    pointer_stride,
    number_stride,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_RANKS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
) -> None:
    tile = tl.program_id(0)
    adapter = tl.load(adapters + tile)
    num_ranks = tl.load(numbers + adapter * number_stride)
    first_rank = tl.program_id(1) * BLOCK_RANKS
    if first_rank >= num_ranks:
        return
    start, size = tl.load(starts + tile), tl.load(sizes + tile)
    places = tl.arange(0, BLOCK_ROWS)
    rows = tl.load(order + start + places, mask=places < size, other=0).to(tl.int64)
    ranks = first_rank + tl.arange(0, BLOCK_RANKS)
    dtype = inputs.dtype.element_ty
    down = tl.load(pointers + adapter * pointer_stride).to(tl.pointer_type(dtype))
    total = tl.full((BLOCK_ROWS, BLOCK_RANKS), 0.0, tl.float32)
    for first in range(0, num_inputs, BLOCK_INPUTS):
        columns = first + tl.arange(0, BLOCK_INPUTS)
        own = tl.load(
            inputs + rows[:, None] * input_stride + columns[None, :],
            mask=(places[:, None] < size) & (columns[None, :] < num_inputs),
            other=0.0,
        )
        weights = tl.load(
            down + ranks[None, :] * num_inputs + columns[:, None],
            mask=(ranks[None, :] < num_ranks) & (columns[:, None] < num_inputs),
            other=0.0,
        )
        total += tl.dot(own, weights, input_precision="ieee")
    tl.store(
        low + (start + places)[:, None] * low_stride + ranks[None, :],
        total.to(dtype),
        mask=(places[:, None] < size) & (ranks[None, :] < num_ranks),
    )


def _expand_kernel(  # type: ignore[no-untyped-def]
    low,
    pointers,
    numbers,
    order,
    starts,
    sizes,
    adapters,
    outputs,
    low_stride,
    output_stride,
    pointer_stride,
    number_stride,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_RANKS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
) -> None:
    tile, part = tl.program_id(0), tl.program_id(1)
    adapter = tl.load(adapters + tile)
    own = numbers + adapter * number_stride + 1 + 4 * part
    first_rank, num_ranks = tl.load(own), tl.load(own + 1)
    first_output, num_outputs = tl.load(own + 2), tl.load(own + 3)
    first_column = tl.program_id(2) * BLOCK_OUTPUTS
    if first_column >= num_outputs:
        return
    start, size = tl.load(starts + tile), tl.load(sizes + tile)
    places = tl.arange(0, BLOCK_ROWS)
    rows = tl.load(order + start + places, mask=places < size, other=0).to(tl.int64)
    columns = first_column + tl.arange(0, BLOCK_OUTPUTS)
    dtype = outputs.dtype.element_ty
    pointer = tl.load(pointers + adapter * pointer_stride + 1 + part)
    up = pointer.to(tl.pointer_type(dtype))
    total = tl.full((BLOCK_ROWS, BLOCK_OUTPUTS), 0.0, tl.float32)
    for first in range(0, num_ranks, BLOCK_RANKS):
        ranks = first + tl.arange(0, BLOCK_RANKS)
        factor = tl.load(
            low + (start + places)[:, None] * low_stride + first_rank + ranks[None, :],
            mask=(places[:, None] < size) & (ranks[None, :] < num_ranks),
            other=0.0,
        )
        weights = tl.load(
            up + columns[None, :] * num_ranks + ranks[:, None],
            mask=(columns[None, :] < num_outputs) & (ranks[:, None] < num_ranks),
            other=0.0,
        )
        total += tl.dot(factor, weights, input_precision="ieee")
    target = outputs + rows[:, None] * output_stride + first_output + columns[None, :]
    is_own = (places[:, None] < size) & (columns[None, :] < num_outputs)
    before = tl.load(target, mask=is_own, other=0.0).to(tl.float32)
    # Rounded before it is added, as where the product is a kernel of its own.
    added = total.to(dtype).to(tl.float32)
    tl.store(target, (before + added).to(dtype), mask=is_own)


_shrink: Any = triton.jit(_shrink_kernel)
_expand: Any = triton.jit(_expand_kernel)
