"""Forbids tokens on the device: bits cross to it, a 32nd of what logits would be on their way back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["as_bytes", "forbid"]


def as_bytes(masks: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Return ``[num_rows, 4 * num_words]``, the same bits, lowest first; torch has no shifts of uint32."""
    return masks.astype("<u4", copy=False).view(np.uint8)


def forbid(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Forbid tokens in place.

    Args:
        logits: ``[num_rows, vocab_size]`` float32; those of rows without any token that is left
            become zeros.
        masks: ``[num_rows, num_bytes]`` uint8, a bit for each allowed token: see
            :func:`as_bytes`.

    Returns:
        ``logits``; and ``[num_rows]`` bool, the rows without any token that is left.
    """
    num_rows, vocab_size = logits.shape
    shifts = torch.arange(8, dtype=torch.uint8, device=masks.device)
    bits = (masks[:, :, None] >> shifts) & 1  # [R, bytes, 8]
    is_forbidden = bits.view(num_rows, -1)[:, :vocab_size] == 0
    logits.masked_fill_(is_forbidden, -torch.inf)
    is_empty = ~logits.amax(dim=1).isfinite()
    return logits.masked_fill_(is_empty[:, None], 0.0), is_empty
