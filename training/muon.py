"""Muon for the matrices: momentum, made orthogonal by a Newton-Schulz iteration.

After Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. Embeddings and
norms are AdamW's; the trainer drives both.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return ``[N, rows, columns]`` with all singular values brought close to 1."""
    a, b, c = _COEFFICIENTS
    x = matrices.bfloat16()
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT.contiguous() if is_tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_NUM_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if is_tall else x
    return result.to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Step each matrix along its orthogonalised Nesterov momentum."""

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure
        """Update every matrix that has a gradient; equal shapes go as one batch."""
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    by_shape[param.shape].append(param)
            for (rows, columns), params in by_shape.items():
                scale = group["lr"] * max(1.0, rows / columns) ** 0.5
                updates = orthogonalize(
                    torch.stack([self._momentum(p, group["momentum"]) for p in params])
                )
                for param, update in zip(params, updates, strict=True):
                    param.mul_(1 - group["lr"] * group["weight_decay"])
                    param.add_(update, alpha=-scale)

    def _momentum(self, param: Tensor, momentum: float) -> Tensor:
        assert param.grad is not None, "step() skips parameters without one"
        state = self.state[param]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(param)
        buffer: Tensor = state["momentum"]
        buffer.lerp_(param.grad, 1 - momentum)
        return param.grad.lerp(buffer, momentum)
