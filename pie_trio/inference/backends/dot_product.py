"""Attention over keys and values that lie together, in torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 -- the name that everybody uses

from pie_trio.inference.models.ops import soft_cap

if TYPE_CHECKING:
    from torch import Tensor

    from pie_trio.inference.models.config import AttentionConfig

__all__ = ["attend"]

# Capped scores are all in memory at once: 64 MB of them.
_MAX_SCORES = 1 << 24


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    config: AttentionConfig,
    *,
    is_causal: bool = False,
) -> Tensor:
    """Return ``[..., n, D]`` for queries ``[..., n, D]`` and keys ``[..., S, D]``.

    Where a row of the bias is -inf throughout, the result is 0.
    """
    if config.softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, is_causal=is_causal, scale=config.scale
        )
    assert not is_causal, "capped scores are planned with a bias"
    num_rows = query.shape[-2]
    scores_of_row = query.shape[:-2].numel() * key.shape[-2]
    rows = max(1, _MAX_SCORES // scores_of_row)
    if bias is None or bias.dim() > 2 or rows >= num_rows:  # one decode, or few tokens
        return _attend_capped(query, key, value, bias, config.scale, config.softcap)
    return torch.cat(
        [
            _attend_capped(
                query[..., start : start + rows, :],
                key,
                value,
                bias[start : start + rows],
                config.scale,
                config.softcap,
            )
            for start in range(0, num_rows, rows)
        ],
        dim=-2,
    )


def _attend_capped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    scale: float,
    cap: float,
) -> Tensor:
    scores = soft_cap((query @ key.mT).float().mul_(scale), cap)
    if bias is not None:
        scores += bias
    weights = scores.softmax(dim=-1)
    if bias is not None:  # a row that sees nothing has no weights, not NaN
        weights.masked_fill_(bias.isneginf(), 0.0)
    return weights.to(value.dtype) @ value
