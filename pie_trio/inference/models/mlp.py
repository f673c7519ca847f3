"""What stands behind attention in a layer: one MLP, or experts and what chooses among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from pie_trio.inference.kernels.protocol import Kernels, LinearLayer
    from pie_trio.inference.models.config import Activation

__all__ = ["GatedMlp", "SparseMlp"]


@dataclass(frozen=True, slots=True)
class GatedMlp:
    """One MLP.

    Attributes:
        gate_up: From ``hidden_size`` to twice the intermediate size.
        down: From the intermediate size to ``hidden_size``.
        activation: Of the gate.
        kernels: Compute it.
    """

    gate_up: LinearLayer
    down: LinearLayer
    activation: Activation
    kernels: Kernels

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return ``[num_tokens, hidden_size]`` for the same."""
        return self.down(self.kernels.gated(self.gate_up(hidden), self.activation))


@dataclass(frozen=True, slots=True)
class SparseMlp:
    """Experts, of which each token goes through a few.

    A token's result depends on no other token of the batch.

    Attributes:
        router: From ``hidden_size`` to the number of experts.
        experts: All of them.
        per_token: Those that a token goes through.
        is_normalized: Whether the shares of the chosen ones add up to 1.
    """

    router: LinearLayer
    experts: tuple[GatedMlp, ...]
    per_token: int
    is_normalized: bool

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return ``[num_tokens, hidden_size]`` for the same."""
        shares = self.router(hidden).softmax(dim=-1, dtype=torch.float32)  # [T, E]
        shares, chosen = shares.topk(self.per_token, dim=-1)  # [T, K]
        if self.is_normalized:
            shares = shares / shares.sum(dim=-1, keepdim=True)
        # Each expert gets its tokens together: the pairs are sorted by expert.
        order = chosen.flatten().argsort(stable=True)  # [T * K]
        num_experts = len(self.experts)
        counts: list[int] = (
            chosen.flatten().bincount(minlength=num_experts).cpu().numpy().tolist()
        )
        tokens, shares = order // self.per_token, shares.flatten()[order, None]
        result = hidden.new_zeros(hidden.shape, dtype=torch.float32)
        start = 0
        for expert, count in zip(self.experts, counts, strict=True):
            if count:
                own = tokens[start : start + count]
                share = shares[start : start + count]
                result.index_add_(0, own, expert(hidden[own]) * share)
            start += count
        return result.to(hidden.dtype)
