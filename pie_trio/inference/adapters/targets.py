"""Where in a decoder the linear layers of its checkpoint are, by name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pie_trio.inference.models.config import DecoderConfig

__all__ = ["LinearName", "Target", "find_targets", "why_no_target"]

LinearName = Literal["qkv", "attention_output", "gate_up", "down"]
"""The linear layers of a decoder's layer, some of which are several of the checkpoint's."""

_EXPERT = re.compile(r"\.experts\.\d+\.|\.(mlp|block_sparse_moe)\.gate$")


@dataclass(frozen=True, slots=True)
class Target:
    """One linear layer of the checkpoint.

    Attributes:
        layer: Index of the decoder's layer.
        linear: Which of its linear layers holds it.
        start: The first of the outputs there that are its own.
        num_outputs: How many are.
        num_inputs: Of the layer.
        blocks: What ranks share of its outputs, one after the other, as the checkpoint has it.
    """

    layer: int
    linear: LinearName
    start: int
    num_outputs: int
    num_inputs: int
    blocks: tuple[int, ...]

    @property
    def is_second(self) -> bool:
        """Whether it reads what another one has computed, so that ranks share its inputs."""
        return self.linear in ("attention_output", "down")


def find_targets(config: DecoderConfig) -> dict[str, Target]:
    """Return what may have an adapter, by the names of the checkpoint."""
    hidden, size = config.hidden_size, config.intermediate_size
    query, key = (
        count * config.head_dim for count in (config.num_heads, config.num_kv_heads)
    )
    qkv: dict[str, tuple[int, ...]]
    gate_up: dict[str, tuple[int, ...]]
    qkv = {"q_proj": (query,), "k_proj": (key,), "v_proj": (key,)}
    gate_up = {"gate_proj": (size,), "up_proj": (size,)}
    if config.is_packed:
        qkv, gate_up = {"qkv_proj": (query, key, key)}, {"gate_up_proj": (size, size)}
    linears: list[tuple[LinearName, str, dict[str, tuple[int, ...]], int]] = [
        ("qkv", "self_attn", qkv, hidden),
        ("attention_output", "self_attn", {"o_proj": (hidden,)}, query),
        ("gate_up", "mlp", gate_up, hidden),
        ("down", "mlp", {"down_proj": (hidden,)}, size),
    ]
    targets: dict[str, Target] = {}
    for index, layer in enumerate(config.layers):
        for linear, block, parts, num_inputs in linears:
            if layer.is_sparse and block == "mlp":
                continue
            start = 0
            for name, blocks in parts.items():
                num_outputs = sum(blocks)
                targets[f"model.layers.{index}.{block}.{name}"] = Target(
                    index, linear, start, num_outputs, num_inputs, blocks
                )
                start += num_outputs
    return targets


def why_no_target(module: str) -> str:
    """Say why a module that is none of the targets cannot have an adapter."""
    if _EXPERT.search(module):
        return "experts and what chooses among them cannot have adapters"
    if module.rpartition(".")[2] in ("embed_tokens", "lm_head"):
        return "embedding and head cannot have adapters"
    return "the model has no such linear layer"
