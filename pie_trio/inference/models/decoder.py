"""The decoder: the mathematics of every family but attention over the cache.

How keys are stored and attended to is the backend's business, so that the same layers serve
every backend. What a family has of its own is declared, not copied: a layer without some part
has None in its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch.nn.functional as F  # noqa: N812 -- the name that everybody uses

from pie_trio.inference.models.ops import soft_cap

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pie_trio.inference.kernels.protocol import Kernels, LinearLayer, Rotation
    from pie_trio.inference.models.config import DecoderConfig
    from pie_trio.inference.models.mlp import GatedMlp, SparseMlp
    from pie_trio.inference.parallel.group import Group

__all__ = ["Attention", "Decoder", "DecoderLayer"]


class Attention(Protocol):
    """Stores the keys and values of a batch's new tokens, and attends to all it may see.

    A token sees what its request's mask says, else all slots up to its own. In a layer with a
    window of W it sees none but the W last of those slots, its own among them. Slots are
    counted as they stand in the context, hidden ones and gaps between positions or not: for a
    context that was filled in order this is what positions would give. A token whose mask
    leaves it nothing inside of the window reads zeros.
    """

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
class DecoderLayer:
    """Weights of one layer. Linear layers that read the same input are packed into one.

    Attributes:
        attention_norm: ``[hidden_size]``.
        qkv: From ``hidden_size`` to ``(num_heads + 2 * num_kv_heads) * head_dim``.
        head_norm: ``[num_heads + num_kv_heads, head_dim]``, of queries and keys.
        rope: Index of the rotary embedding.
        attention_output: From ``num_heads * head_dim`` to ``hidden_size``.
        attention_post_norm: ``[hidden_size]``.
        mlp_norm: ``[hidden_size]``.
        mlp: From ``hidden_size`` to ``hidden_size``.
        mlp_post_norm: ``[hidden_size]``.
    """

    attention_norm: Tensor
    qkv: LinearLayer
    head_norm: Tensor | None
    rope: int | None
    attention_output: LinearLayer
    attention_post_norm: Tensor | None
    mlp_norm: Tensor
    mlp: GatedMlp | SparseMlp
    mlp_post_norm: Tensor | None


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder ready to run; it holds no state between calls.

    Attributes:
        embedding: ``[vocab_size, hidden_size]``.
        embedding_scale: What embeddings are multiplied by; a number of the model's dtype.
        final_norm: ``[hidden_size]``.
        head: From ``hidden_size`` to ``vocab_size``; of the embedding where the two are tied.
        inverse_frequencies: ``[R / 2]`` float32 of each rotary embedding.
        kernels: Compute what is small; the weights of norms are theirs.
        group: The ranks that have a part of each layer; None where this is all of it.
    """

    config: DecoderConfig
    embedding: Tensor
    embedding_scale: float
    layers: tuple[DecoderLayer, ...]
    final_norm: Tensor
    head: LinearLayer
    inverse_frequencies: tuple[Tensor, ...]
    kernels: Kernels
    group: Group | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, the hidden states and the KV cache."""
        return self.embedding.dtype

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return ``[num_tokens, hidden_size]``, what the tokens enter the first layer as."""
        embedded = F.embedding(token_ids, self.embedding)
        if self.embedding_scale == 1.0:
            return embedded
        return embedded.mul_(self.embedding_scale)

    def forward(
        self, hidden: Tensor, positions: Tensor, attention: Attention
    ) -> Tensor:
        """Run all layers over a ragged batch.

        Args:
            hidden: ``[num_tokens, hidden_size]`` of all requests, one after the other; may be
                written over.
            positions: ``[num_tokens]`` int, what the rotary embedding sees.
            attention: Knows which token belongs to which request.

        Returns:
            ``[num_tokens, hidden_size]``, before the final norm: see :meth:`logits`.
        """
        eps, rms_norm = self.config.rms_norm_eps, self.kernels.rms_norm
        add_rms_norm = self.kernels.add_rms_norm
        rotations = self._rotations(positions)
        last = len(self.layers) - 1
        normed = rms_norm(hidden, self.layers[0].attention_norm, eps)
        for index, layer in enumerate(self.layers):
            query, key, value = self._query_key_value(layer, normed, rotations)
            attended = layer.attention_output(attention(index, query, key, value))
            if self.group is not None:
                attended = self.group.sum(attended)
            if layer.attention_post_norm is not None:
                attended = rms_norm(attended, layer.attention_post_norm, eps)
            hidden, normed = add_rms_norm(hidden, attended, layer.mlp_norm, eps)
            result = layer.mlp(normed)
            if self.group is not None:
                result = self.group.sum(result)
            if layer.mlp_post_norm is not None:
                result = rms_norm(result, layer.mlp_post_norm, eps)
            if index == last:
                return hidden + result
            following = self.layers[index + 1].attention_norm
            hidden, normed = add_rms_norm(hidden, result, following, eps)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Return ``[num_rows, vocab_size]`` float32 for rows of :meth:`forward`'s result.

        Ranks that do not lead have ``[num_rows, 0]``.
        """
        eps = self.config.rms_norm_eps
        normed = self.kernels.rms_norm(hidden, self.final_norm, eps)
        logits = self.head(normed)
        if self.group is not None:
            logits = self.group.gather(logits, self.config.vocab_size)
        logits = logits.float()
        if self.config.logit_softcap is not None:
            logits = soft_cap(logits, self.config.logit_softcap)
        return logits

    def _rotations(self, positions: Tensor) -> list[Rotation]:
        """Return cosine and sine of each rotary embedding, each ``[num_tokens, 1, R / 2]``.

        Computed for each batch, not looked up: positions may lie beyond any table.
        """
        column = positions.float()[:, None, None]  # [T, 1, 1]
        ropes = zip(self.config.ropes, self.inverse_frequencies, strict=True)
        return [
            self.kernels.rotation(
                column * frequencies, rope.attention_factor, self.dtype
            )
            for rope, frequencies in ropes
        ]

    def _query_key_value(
        self, layer: DecoderLayer, normed: Tensor, rotations: list[Rotation]
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_heads, num_kv_heads = self.config.num_heads, self.config.num_kv_heads
        qkv = layer.qkv(normed).view(
            normed.shape[0], num_heads + 2 * num_kv_heads, self.config.head_dim
        )  # [T, H + 2 KV, D]
        heads = self.kernels.turn_heads(
            qkv[:, : num_heads + num_kv_heads],
            layer.head_norm,
            self.config.rms_norm_eps,
            None if layer.rope is None else rotations[layer.rope],
        )  # [T, H + KV, D]
        return heads[:, :num_heads], heads[:, num_heads:], qkv[:, -num_kv_heads:]
