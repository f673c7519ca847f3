"""A Llama decoder in plain torch, for training and as the fp32 reference.

Weights carry the names of the Hugging Face layout, so export is a change of dtype.
Nothing here serves requests: the KV cache is only there to evaluate checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

# Times 16 (the norm of a normalised row) this is the size of the first logits.
_LOGIT_SCALE = 0.02

KVCache = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of the model; the defaults are ``pie-tiny``'s.

    ``embedding_std`` matters at the start of training alone.
    """

    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 512
    num_layers: int = 5
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    max_positions: int = 4096
    rope_theta: float = 100_000.0
    rms_norm_eps: float = 1e-5
    embedding_std: float = 0.1


def rope_tables(config: ModelConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and sines for ``positions``, each ``[T, head_dim]`` fp32."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32)
    inverse = config.rope_theta ** -(exponents / config.head_dim)
    angles = positions.float()[:, None] * inverse.to(positions.device)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of each head, as Hugging Face's Llama does."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class RMSNorm(nn.Module):
    """Divide by the root of the mean square, in fp32 whatever the input is."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with unit root mean square, times the weight."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale).to(x.dtype) * self.weight.to(x.dtype)


class Linear(nn.Linear):
    """A linear layer without bias that computes in the dtype of its input."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` times the weight, in the dtype of ``x``."""
        return functional.linear(x, self.weight.to(x.dtype))


class Attention(nn.Module):
    """Causal grouped-query attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.head_dim
        q_size = config.num_heads * config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, q_size)
        self.k_proj = Linear(config.hidden_size, kv_size)
        self.v_proj = Linear(config.hidden_size, kv_size)
        self.o_proj = Linear(q_size, config.hidden_size)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None,
        past: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the output, ``[B, T, hidden]``, and the keys and values it used."""
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, self.num_heads, self.head_dim)
        k = self.k_proj(x).view(batch, length, self.num_kv_heads, self.head_dim)
        v = self.v_proj(x).view(batch, length, self.num_kv_heads, self.head_dim)
        q, k = rotate(q, *rope), rotate(k, *rope)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [B, H, T, D]
        if past is not None:
            k = torch.cat((past[0], k), dim=2)
            v = torch.cat((past[1], v), dim=2)
        group = self.num_heads // self.num_kv_heads
        out = functional.scaled_dot_product_attention(
            q,
            k.repeat_interleave(group, dim=1),
            v.repeat_interleave(group, dim=1),
            attn_mask=mask,
            is_causal=mask is None,
        )
        out = out.transpose(1, 2).reshape(batch, length, -1)
        return self.o_proj(out), (k, v)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, T, hidden]``."""
        out: Tensor = self.down_proj(
            functional.silu(self.gate_proj(x)) * self.up_proj(x)
        )
        return out


class Layer(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None,
        past: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the new residual stream and the keys and values of this layer."""
        attended, present = self.self_attn(self.input_layernorm(x), rope, mask, past)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), present


class Llama(nn.Module):
    """The decoder, its output head tied to the embedding."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.apply(self._init_weights)
        # Keeps the first logits small whatever the scale of the tied embedding.
        nn.init.constant_(self.norm.weight, _LOGIT_SCALE / config.embedding_std)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.embedding_std)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if isinstance(module, Attention):
            nn.init.zeros_(module.o_proj.weight)
        if isinstance(module, MLP):
            nn.init.zeros_(module.down_proj.weight)

    def forward(self, token_ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the last hidden states, ``[B, T, hidden]``, of whole sequences."""
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)
        cos, sin = rope_tables(self.config, positions)
        rope = cos[:, None].to(dtype), sin[:, None].to(dtype)  # [T, 1, D]
        x = self.embed_tokens(token_ids).to(dtype)
        for layer in self.layers:
            x, _ = layer(x, rope, None, None)
        hidden: Tensor = self.norm(x)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Return fp32 logits of the rows of ``hidden``."""
        return functional.linear(
            hidden, self.embed_tokens.weight.to(hidden.dtype)
        ).float()

    def step(
        self, token_ids: Tensor, positions: Tensor, mask: Tensor, past: KVCache | None
    ) -> tuple[Tensor, KVCache]:
        """Return fp32 logits of the last position and the grown cache.

        Args:
            token_ids: ``[B, T]`` new tokens; rows may be padded on the left.
            positions: ``[B, T]`` their positions.
            mask: ``[B, 1, T, past + T]`` bool, true where a query may look.
            past: Keys and values of each layer, or ``None`` at the start.
        """
        batch, length = token_ids.shape
        cos, sin = rope_tables(self.config, positions.flatten())
        shape = (batch, length, 1, self.config.head_dim)
        rope = cos.view(shape), sin.view(shape)
        x = self.embed_tokens(token_ids)
        presents: KVCache = []
        for index, layer in enumerate(self.layers):
            x, present = layer(x, rope, mask, past[index] if past else None)
            presents.append(present)
        return self.logits(self.norm(x[:, -1])), presents
