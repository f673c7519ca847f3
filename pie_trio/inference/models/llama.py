"""The Llama decoder: weights and mathematics of everything but attention over the cache.

How keys are stored and attended to is the backend's business, so that the same layers serve
every backend; a family with small differences declares them and shares this code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F  # noqa: N812 -- the name that everybody uses

if TYPE_CHECKING:
    from torch import Tensor

    from pie_trio.inference.models.config import DecoderConfig
    from pie_trio.inference.weights import Checkpoint

__all__ = ["Attention", "LlamaLayer", "LlamaModel", "load_llama"]


class Attention(Protocol):
    """Stores the keys and values of a batch's new tokens, and attends to all it may see."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return what the new tokens read from the context.

        Args:
            layer: Index of the layer.
            query: ``[num_tokens, num_heads, head_dim]``, rotated.
            key: ``[num_tokens, num_kv_heads, head_dim]``, rotated.
            value: As ``key``, not rotated.

        Returns:
            ``[num_tokens, num_heads * head_dim]``.
        """
        ...


@dataclass(frozen=True, slots=True)
class LlamaLayer:
    """Weights of one layer. Linear layers that read the same input are packed into one.

    Attributes:
        attention_norm: ``[hidden_size]``.
        qkv: ``[(num_heads + 2 * num_kv_heads) * head_dim, hidden_size]``.
        attention_output: ``[hidden_size, num_heads * head_dim]``.
        mlp_norm: ``[hidden_size]``.
        gate_up: ``[2 * intermediate_size, hidden_size]``.
        down: ``[hidden_size, intermediate_size]``.
    """

    attention_norm: Tensor
    qkv: Tensor
    attention_output: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True)
class LlamaModel:
    """A decoder ready to run; it holds no state between calls.

    Attributes:
        embedding: ``[vocab_size, hidden_size]``.
        final_norm: ``[hidden_size]``.
        head: ``[vocab_size, hidden_size]``; the embedding itself where the two are tied.
        inverse_frequencies: ``[head_dim / 2]`` float32, of the rotary embedding.
    """

    config: DecoderConfig
    embedding: Tensor
    layers: tuple[LlamaLayer, ...]
    final_norm: Tensor
    head: Tensor
    inverse_frequencies: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, the hidden states and the KV cache."""
        return self.embedding.dtype

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return ``[num_tokens, hidden_size]``, what the tokens enter the first layer as."""
        return F.embedding(token_ids, self.embedding)

    def forward(
        self, hidden: Tensor, positions: Tensor, attention: Attention
    ) -> Tensor:
        """Run all layers over a ragged batch.

        Args:
            hidden: ``[num_tokens, hidden_size]`` of all requests, one after the other.
            positions: ``[num_tokens]`` int, what the rotary embedding sees.
            attention: Knows which token belongs to which request.

        Returns:
            ``[num_tokens, hidden_size]``, before the final norm: see :meth:`logits`.
        """
        cos, sin = self._rotary(positions)
        for index, layer in enumerate(self.layers):
            normed = self._norm(hidden, layer.attention_norm)
            query, key, value = self._query_key_value(layer, normed, cos, sin)
            attended = attention(index, query, key, value)
            hidden = hidden + F.linear(attended, layer.attention_output)
            gate, up = F.linear(
                self._norm(hidden, layer.mlp_norm), layer.gate_up
            ).chunk(2, dim=-1)
            hidden = hidden + F.linear(F.silu(gate) * up, layer.down)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Return ``[num_rows, vocab_size]`` float32 for rows of :meth:`forward`'s result."""
        return F.linear(self._norm(hidden, self.final_norm), self.head).float()

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(hidden, weight.shape, weight, self.config.rms_norm_eps)

    def _rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine, each ``[num_tokens, 1, head_dim / 2]``.

        Computed for each batch, not looked up: positions may lie beyond any table.
        """
        angles = (
            positions.float()[:, None, None] * self.inverse_frequencies
        )  # [T, 1, D/2]
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)

    def _query_key_value(
        self, layer: LlamaLayer, normed: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_heads, num_kv_heads = self.config.num_heads, self.config.num_kv_heads
        qkv = F.linear(normed, layer.qkv).view(
            normed.shape[0], num_heads + 2 * num_kv_heads, self.config.head_dim
        )  # [T, H + 2 KV, D]
        rotated = _rotate(
            qkv[:, : num_heads + num_kv_heads], cos, sin
        )  # [T, H + KV, D]
        return rotated[:, :num_heads], rotated[:, num_heads:], qkv[:, -num_kv_heads:]


def load_llama(
    config: DecoderConfig, checkpoint: Checkpoint, dtype: torch.dtype
) -> LlamaModel:
    """Read the weights of a Llama model.

    Raises:
        ModelDirectoryError: A tensor is missing, superfluous, or has an unexpected shape.
    """
    vocabulary = (config.vocab_size, config.hidden_size)
    name = "model.embed_tokens.weight"
    # With tied weights, either name may be the one that was saved.
    if config.tie_word_embeddings and name not in checkpoint:
        name = "lm_head.weight"
    embedding = checkpoint.take(name, vocabulary, dtype)
    if config.tie_word_embeddings:
        head = embedding
    else:
        head = checkpoint.take("lm_head.weight", vocabulary, dtype)
    layers = tuple(
        _load_layer(config, checkpoint, dtype, f"model.layers.{index}")
        for index in range(config.num_layers)
    )
    final_norm = checkpoint.take("model.norm.weight", (config.hidden_size,), dtype)
    checkpoint.check_all_taken(ignore=lambda name: _is_redundant(name, config))
    exponents = (
        torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    )
    inverse_frequencies = 1.0 / config.rope_theta**exponents
    return LlamaModel(config, embedding, layers, final_norm, head, inverse_frequencies)


def _is_redundant(name: str, config: DecoderConfig) -> bool:
    """Say whether a checkpoint may hold this tensor though nothing reads it."""
    is_tied_copy = config.tie_word_embeddings and name == "lm_head.weight"
    return is_tied_copy or name.endswith(".rotary_emb.inv_freq")  # old checkpoints


def _load_layer(
    config: DecoderConfig, checkpoint: Checkpoint, dtype: torch.dtype, prefix: str
) -> LlamaLayer:
    hidden, intermediate = config.hidden_size, config.intermediate_size
    query = config.num_heads * config.head_dim
    key_value = config.num_kv_heads * config.head_dim

    def take(name: str, *shape: int) -> Tensor:
        return checkpoint.take(f"{prefix}.{name}.weight", shape, dtype)

    return LlamaLayer(
        attention_norm=take("input_layernorm", hidden),
        qkv=torch.cat(
            (
                take("self_attn.q_proj", query, hidden),
                take("self_attn.k_proj", key_value, hidden),
                take("self_attn.v_proj", key_value, hidden),
            )
        ),
        attention_output=take("self_attn.o_proj", hidden, query),
        mlp_norm=take("post_attention_layernorm", hidden),
        gate_up=torch.cat(
            (
                take("mlp.gate_proj", intermediate, hidden),
                take("mlp.up_proj", intermediate, hidden),
            )
        ),
        down=take("mlp.down_proj", hidden, intermediate),
    )


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (i, i + D/2) of ``[T, heads, D]``, as Hugging Face checkpoints need."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
