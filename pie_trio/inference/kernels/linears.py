"""Linear layers with weights that oneDNN has laid out once, whole or in 8 bits.

torch keeps these operations to itself (they serve its compiler), so each is tried before it is
used; where it is missing, the plain layer stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from pie_trio.inference.kernels.protocol import Kernels
    from pie_trio.inference.models.ops import Linear

__all__ = ["Int8Linear", "PackedLinear", "make_int8", "pack", "round_up_rows"]

# Rows for which oneDNN lays out the weights; they serve any number.
_TYPICAL_ROWS = 8

# So many rows, as of steps that decode, are computed as they are; others are rounded up.
_MAX_EXACT_ROWS = 32

# Smaller layers gain nothing.
_MIN_PACKED_WEIGHTS = 1 << 16


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """As :class:`Linear`, 1.3 to 2 times as fast."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return ``[num_rows, num_outputs]`` for ``[num_rows, num_inputs]``."""
        return _linear(inputs, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Int8Linear:
    """A linear layer in 8 bits: each row of the weights and of the inputs has its own scale.

    So what a row of the result is depends on its own input alone.

    Attributes:
        weight: Laid out by oneDNN.
        scales: ``[num_outputs]`` float32.
        bias: ``[num_outputs]``, or None.
    """

    kernels: Kernels
    weight: Tensor
    scales: Tensor
    zero_points: Tensor
    bias: Tensor | None
    dtype: torch.dtype

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return ``[num_rows, num_outputs]`` for ``[num_rows, num_inputs]``."""
        quantized, row_scales = self.kernels.quantize_rows(inputs)
        weight = (self.weight, self.scales, self.zero_points)
        outputs = _int8_linear(quantized, *weight, self.dtype)
        outputs = self.kernels.scale_rows(outputs, row_scales)
        return outputs if self.bias is None else outputs.add_(self.bias)


def pack(linear: Linear) -> Linear | PackedLinear:
    """Return the same layer with weights laid out anew, where that is possible and worth it."""
    weight = linear.weight
    if weight.numel() < _MIN_PACKED_WEIGHTS or not _can_pack(weight.dtype):
        return linear
    return PackedLinear(_packed(weight), linear.bias)


def make_int8(linear: Linear, kernels: Kernels) -> Int8Linear:
    """Return the layer with weights rounded to 8 bits.

    Raises:
        ConfigError: This torch cannot run it on this machine.
    """
    if reason := _why_no_int8():
        raise ConfigError(
            f"this torch cannot compute in 8 bits on this machine ({reason}): start "
            "without --quantize int8"
        )
    weight = linear.weight.float()
    scales = weight.abs().amax(dim=1).clamp(min=1e-30) / 127.0
    rounded = (weight / scales[:, None]).round().to(torch.int8)
    zero_points = torch.zeros(len(scales), dtype=torch.int32)
    packed = torch.ops.onednn.qlinear_prepack(rounded, None)
    dtype, bias = linear.weight.dtype, linear.bias
    return Int8Linear(kernels, packed, scales, zero_points, bias, dtype)


@cache
def _can_pack(dtype: torch.dtype) -> bool:
    """Try it: the operations may be missing, and bfloat16 needs AVX-512."""
    inputs, weight = torch.ones(2, 32, dtype=dtype), torch.eye(32, dtype=dtype)
    try:
        outputs = _linear(inputs, _packed(weight), None)
    except (AttributeError, RuntimeError):
        return False
    return bool((outputs == inputs).all())


@cache
def _why_no_int8() -> str:
    """Return an empty string where it works."""
    zero_points = torch.zeros(32, dtype=torch.int32)
    try:
        weight = torch.ops.onednn.qlinear_prepack(torch.eye(32).to(torch.int8), None)
        quantized = torch.full((2, 32), 129, dtype=torch.uint8)
        outputs = _int8_linear(
            quantized, weight, torch.ones(32), zero_points, torch.float32
        )
    except (AttributeError, RuntimeError) as error:
        return str(error).partition("\n")[0]
    return "" if bool((outputs == 1.0).all()) else "its result is wrong"


def _packed(weight: Tensor) -> Tensor:
    operation: Any = torch.ops.mkldnn._reorder_linear_weight
    packed: Tensor = operation(weight.contiguous(), _TYPICAL_ROWS)
    return packed


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    operation: Any = torch.ops.mkldnn._linear_pointwise.default
    # oneDNN refuses some inputs whose rows do not lie together.
    padded = _pad_rows(inputs).contiguous()
    outputs: Tensor = operation(padded, weight, bias, "none", [], "")
    return outputs[: len(inputs)]


def round_up_rows(num_rows: int) -> int:
    """Return for how many rows to compute: at most 3 % more, and some 200 different numbers.

    For each number of rows oneDNN makes code of its own, which it keeps for ever, so that
    prompts of all lengths would take more and more memory.
    """
    if num_rows <= _MAX_EXACT_ROWS:
        return num_rows
    step = 1 << ((num_rows - 1).bit_length() - 6)
    return -(-num_rows // step) * step


def _pad_rows(inputs: Tensor) -> Tensor:
    more = round_up_rows(len(inputs)) - len(inputs)
    return torch.nn.functional.pad(inputs, (0, 0, 0, more)) if more else inputs


def _int8_linear(
    quantized: Tensor,
    weight: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    one, zero_point = _input_scale()
    operation: Any = torch.ops.onednn.qlinear_pointwise.tensor
    outputs: Tensor = operation(
        *(_pad_rows(quantized), one, zero_point, weight, scales, zero_points, None),
        *(1.0, 0, dtype, "none", [], ""),
    )
    return outputs[: len(quantized)]


@cache
def _input_scale() -> tuple[Tensor, Tensor]:
    """Return scale and zero point of all inputs: the rows' own scales come afterwards."""
    return torch.tensor(1.0), torch.tensor(128, dtype=torch.int32)
