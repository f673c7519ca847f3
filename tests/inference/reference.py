"""A naive Llama in float64, without cache, pages or batches; the model for every backend."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor


def reference_logits(
    directory: Path,
    token_ids: Sequence[int],
    positions: Sequence[int],
    mask: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Return ``[num_tokens, vocab_size]`` for one whole context and its ``[n, n]`` mask."""
    config = json.loads((directory / "config.json").read_text())
    weights = {
        n: t.double() for n, t in load_file(directory / "model.safetensors").items()
    }
    dim, group = config["head_dim"], config["num_attention_heads"]
    group //= config["num_key_value_heads"]
    # The angles are rounded to float32 as transformers does; at large positions that shows.
    frequencies = 1.0 / config["rope_theta"] ** (torch.arange(0, dim, 2).float() / dim)
    angles = (
        torch.tensor(positions).float()[:, None] * frequencies
    ).double()  # [T, D/2]
    turn = torch.polar(torch.ones_like(angles), angles)  # [T, D/2]

    def norm(x: Tensor, name: str) -> Tensor:
        scale = x.square().mean(-1, keepdim=True).add(config["rms_norm_eps"]).rsqrt()
        return torch.mul(x * scale, weights[f"{name}.weight"])

    def heads(x: Tensor, name: str) -> Tensor:  # [H, T, D]
        projected = x @ weights[f"{name}.weight"].T
        return projected.view(x.shape[0], -1, dim).transpose(0, 1)

    def rotate(x: Tensor) -> Tensor:  # as complex numbers, unlike the implementation
        pairs = torch.complex(x[..., : dim // 2], x[..., dim // 2 :]) * turn
        return torch.cat((pairs.real, pairs.imag), dim=-1)

    x = weights["model.embed_tokens.weight"][torch.tensor(token_ids)]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        h = norm(x, f"{prefix}.input_layernorm")
        q = rotate(heads(h, f"{prefix}.self_attn.q_proj"))
        k = rotate(heads(h, f"{prefix}.self_attn.k_proj")).repeat_interleave(group, 0)
        v = heads(h, f"{prefix}.self_attn.v_proj").repeat_interleave(group, 0)
        scores = (q @ k.mT / dim**0.5).masked_fill(~torch.tensor(mask), -torch.inf)
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
        x = x + mixed @ weights[f"{prefix}.self_attn.o_proj.weight"].T
        h = norm(x, f"{prefix}.post_attention_layernorm")
        gate = torch.nn.functional.silu(h @ weights[f"{prefix}.mlp.gate_proj.weight"].T)
        up = h @ weights[f"{prefix}.mlp.up_proj.weight"].T
        x = x + (gate * up) @ weights[f"{prefix}.mlp.down_proj.weight"].T
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return np.asarray((norm(x, "model.norm") @ head.T).numpy())
