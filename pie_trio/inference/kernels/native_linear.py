"""Linear layers of bfloat16 in C++: of few rows they are read as fast as the memory gives them.

oneDNN, which :mod:`~pie_trio.inference.kernels.linears` uses where this is not to be had, takes
half as long again for the rows of a step that decodes, and makes code of its own for each number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from pie_trio.inference.kernels.library import Library
    from pie_trio.inference.models.ops import Linear

__all__ = ["NativeLinear", "pack_native"]

_BLOCK = 16
"""Outputs whose weights lie together; OUTPUTS of kernels.cpp."""

_SHORT = 1 << 20
"""So many products take less than 20 us."""


@dataclass(frozen=True, slots=True)
class NativeLinear:
    """As :class:`Linear`, with weights that were laid out by :func:`pack_native`.

    Attributes:
        weight: ``[ceil(num_outputs / 16), num_inputs / 2, 16, 2]`` bfloat16.
        bias: ``[num_outputs]`` float32, or None.
        num_outputs: Of each row.
        address: Of the weights.
    """

    library: Library
    weight: Tensor
    bias: Tensor | None
    num_outputs: int
    address: int

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return ``[num_rows, num_outputs]`` for ``[num_rows, num_inputs]``."""
        if inputs.stride(1) != 1:
            inputs = inputs.contiguous()
        num_rows, num_inputs = inputs.shape
        outputs = inputs.new_empty(num_rows, self.num_outputs)
        is_short = num_rows * num_inputs * self.num_outputs < _SHORT
        library = self.library
        functions = library.short_functions if is_short else library.functions
        functions.pie_linear(
            inputs.data_ptr(),
            num_rows,
            inputs.stride(0),
            self.address,
            None if self.bias is None else self.bias.data_ptr(),
            self.num_outputs,
            num_inputs,
            outputs.data_ptr(),
        )
        return outputs


def pack_native(linear: Linear, library: Library) -> NativeLinear | None:
    """Return the same layer with weights laid out anew; None where that is not possible."""
    weight = linear.weight.contiguous()
    num_outputs, num_inputs = weight.shape
    is_possible = library.has_linear and weight.dtype == torch.bfloat16
    if not is_possible or num_inputs % 2:
        return None
    num_blocks = -(-num_outputs // _BLOCK)
    packed = weight.new_empty(num_blocks, num_inputs // 2, _BLOCK, 2)
    library.functions.pie_pack_linear(
        weight.data_ptr(), packed.data_ptr(), num_outputs, num_inputs
    )
    bias = None if linear.bias is None else linear.bias.float().contiguous()
    return NativeLinear(library, packed, bias, num_outputs, packed.data_ptr())
