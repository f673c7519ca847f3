"""The small operations of a decoder, each one call, in readable torch.

A backend that has faster ones replaces them here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 -- the name that everybody uses

if TYPE_CHECKING:
    from torch import Tensor

    from pie_trio.inference.models.config import Activation

__all__ = ["Linear", "gated", "rms_norm", "rotate", "soft_cap"]


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer.

    Attributes:
        weight: ``[num_outputs, num_inputs]``.
        bias: ``[num_outputs]``, or None.
    """

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return ``[num_rows, num_outputs]`` for ``[num_rows, num_inputs]``."""
        return F.linear(inputs, self.weight, self.bias)


def rms_norm(inputs: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return ``inputs`` with vectors of root mean square 1, times ``weight``.

    Args:
        inputs: ``[..., D]``, or ``[..., heads, D]``.
        weight: ``[D]``, or ``[heads, D]``. Where it is more precise than the inputs, so is the
            computation.
        eps: Added to the mean square.

    Returns:
        As ``inputs``, of their dtype.
    """
    if weight.dtype != inputs.dtype:
        return rms_norm(inputs.to(weight.dtype), weight, eps).to(inputs.dtype)
    if weight.dim() == 1:
        return F.rms_norm(inputs, weight.shape, weight, eps)
    return F.rms_norm(inputs, weight.shape[-1:], None, eps) * weight


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (i, i + R/2) of the first R dimensions, as Hugging Face checkpoints need.

    Args:
        heads: ``[num_tokens, num_heads, D]``.
        cos: ``[num_tokens, 1, R/2]``.
        sin: As ``cos``.
    """
    rotated_dim = 2 * cos.shape[-1]
    if rotated_dim < heads.shape[-1]:
        turned = rotate(heads[..., :rotated_dim], cos, sin)
        return torch.cat((turned, heads[..., rotated_dim:]), dim=-1)
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def gated(gate_up: Tensor, activation: Activation) -> Tensor:
    """Return ``[num_rows, D]``, the activated first half of ``[num_rows, 2 D]`` times the second."""
    gate, up = gate_up.chunk(2, dim=-1)
    if activation == "silu":
        return F.silu(gate) * up
    return F.gelu(gate, approximate="tanh") * up


def soft_cap(values: Tensor, cap: float) -> Tensor:
    """Bend values so that they stay between ``-cap`` and ``cap``; in place."""
    return values.div_(cap).tanh_().mul_(cap)
