"""The frequencies of rotary embeddings, and their scaling for contexts longer than trained."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from pie_trio.inference.models.rope_fields import Rope

__all__ = ["inverse_frequencies"]


def inverse_frequencies(rope: Rope) -> Tensor:
    """Return ``[rope.dim / 2]`` float32, what positions are multiplied by.

    For longrope these are the frequencies of short contexts, whatever the position: keys are
    stored rotated, in pages that contexts of any length share, and could not be rotated again
    when a context becomes long.
    """
    exponents = torch.arange(0, rope.dim, 2, dtype=torch.float32) / rope.dim
    plain = 1.0 / rope.theta**exponents
    match rope.kind:
        case "linear":
            return plain / rope.factor
        case "llama3":
            return _llama3(rope, plain)
        case "yarn":
            return _yarn(rope, plain)
        case "longrope":
            return plain / torch.tensor(rope.short_factors)
        case _:
            return plain


def _llama3(rope: Rope, plain: Tensor) -> Tensor:
    """Scale frequencies with few turns in the original context, and blend in between."""
    turns = rope.original_positions * plain / (2.0 * math.pi)
    span = rope.high_freq_factor - rope.low_freq_factor
    kept = ((turns - rope.low_freq_factor) / span).clamp(0.0, 1.0)
    return plain * (kept + (1.0 - kept) / rope.factor)


def _yarn(rope: Rope, plain: Tensor) -> Tensor:
    """As llama3, but blended evenly over the dimensions: see arXiv:2309.00071, section 3.2."""
    low, high = (_dimension(rope, turns) for turns in (rope.beta_fast, rope.beta_slow))
    if rope.is_truncated:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    if low == high:
        high += 0.001  # a step instead of a ramp
    scaled = (torch.arange(rope.dim // 2) - low) / (high - low)
    scaled = scaled.clamp(0.0, 1.0)
    return plain * (scaled / rope.factor + (1.0 - scaled))


def _dimension(rope: Rope, turns: float) -> float:
    """Return the pair of dimensions that turns so often in the original context."""
    ratio = rope.original_positions / (turns * 2.0 * math.pi)
    return rope.dim * math.log(ratio) / (2.0 * math.log(rope.theta))
