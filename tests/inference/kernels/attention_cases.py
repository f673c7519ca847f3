"""Contexts with random keys and values, fed to an attention step by step, and a naive answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from pie_trio.engine_api import Batch, ForwardRequest
from pie_trio.inference.metadata import build_metadata
from pie_trio.inference.models.config import (
    AttentionConfig,
    DecoderConfig,
    LayerConfig,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from pie_trio.inference.kernels.protocol import Kernels, PagedCache

NUM_PAGES = 120


@dataclass(frozen=True)
class Geometry:
    """Of one model; the defaults differ from each other, to find swapped axes."""

    num_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 32
    page_size: int = 16
    windows: tuple[int | None, ...] = (None,)
    softcap: float | None = None
    dtype: torch.dtype = torch.float32

    @property
    def attention(self) -> AttentionConfig:
        return AttentionConfig.of_layers(
            [LayerConfig(window=window) for window in self.windows],
            scale=0.3,
            softcap=self.softcap,
        )

    def cache(self, kernels: Kernels, num_pages: int = NUM_PAGES) -> PagedCache:
        return kernels.allocate_kv_cache(
            self._config(),
            num_pages=num_pages,
            page_size=self.page_size,
            dtype=self.dtype,
        )

    def _config(self) -> DecoderConfig:
        return DecoderConfig(
            architecture="LlamaForCausalLM",
            vocab_size=8,
            hidden_size=8,
            intermediate_size=8,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            layers=tuple(LayerConfig(window=window) for window in self.windows),
            attention=self.attention,
            ropes=(),
            rms_norm_eps=1e-5,
            norm_offset=0.0,
            activation="silu",
            embedding_scale=1.0,
            logit_softcap=None,
            has_qk_norm=False,
            has_post_norms=False,
            has_qkv_bias=False,
            has_output_bias=False,
            has_mlp_bias=False,
            is_packed=False,
            experts=None,
            max_positions=4096,
            tie_word_embeddings=True,
            stored_dtype=None,
        )


@dataclass
class Story:
    """One context: what was written to it so far."""

    geometry: Geometry
    page_ids: NDArray[np.int32]
    keys: list[Tensor] = field(default_factory=list["Tensor"])  # [n, L, KV, D] each
    values: list[Tensor] = field(default_factory=list["Tensor"])

    def __len__(self) -> int:
        return sum(len(part) for part in self.keys)


@dataclass(frozen=True)
class Part:
    """What one request does in a step: ``[n, L, heads, D]`` each."""

    story: Story
    query: Tensor
    key: Tensor
    value: Tensor
    mask: NDArray[np.bool_] | None = None

    def forward(self) -> ForwardRequest:
        num_tokens = len(self.query)
        kv_len = len(self.story) + num_tokens
        return ForwardRequest(
            token_ids=np.zeros(num_tokens, np.int32),
            positions=np.arange(kv_len - num_tokens, kv_len, dtype=np.int32),
            page_ids=self.story.page_ids,
            kv_len=kv_len,
            mask=self.mask,
        )

    def expected(self, layer: int) -> Tensor:
        """Return ``[n, H * D]`` in float64."""
        geometry, num_tokens = self.story.geometry, len(self.query)
        key = torch.cat([*self.story.keys, self.key])[:, layer].double()  # [S, KV, D]
        value = torch.cat([*self.story.values, self.value])[:, layer].double()
        group = geometry.num_heads // geometry.num_kv_heads
        key, value = (x.repeat_interleave(group, 1) for x in (key, value))
        config = geometry.attention
        scores = torch.einsum("nhd,shd->hns", self.query[:, layer].double(), key)
        scores = scores * config.scale
        if config.softcap is not None:
            scores = config.softcap * torch.tanh(scores / config.softcap)
        slots = torch.arange(len(key))
        own = slots[-num_tokens:, None]
        seen = slots <= own if self.mask is None else torch.from_numpy(self.mask)
        if (window := geometry.windows[layer]) is not None:
            seen = seen & (own - slots < window)
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
        return torch.einsum("hns,shd->nhd", weights, value).flatten(1)


def make_stories(
    geometry: Geometry, lengths: Sequence[int], seed: int = 0
) -> list[Story]:
    """Return empty contexts with room for so many tokens, on pages in random order."""
    counts = [-(-length // geometry.page_size) for length in lengths]
    rng = np.random.default_rng(seed)
    # Whoever needs more pages than that gives the cache more.
    page_ids = rng.permutation(max(NUM_PAGES, sum(counts)))[: sum(counts)]
    parts = np.split(page_ids.astype(np.int32), np.cumsum(counts)[:-1])
    return [Story(geometry, part) for part in parts]


def make_part(
    story: Story, num_tokens: int, seed: int, mask: NDArray[np.bool_] | None = None
) -> Part:
    """Return random new tokens."""
    geometry = story.geometry
    num_heads = geometry.num_heads + 2 * geometry.num_kv_heads
    shape = (num_tokens, len(geometry.windows), num_heads, geometry.head_dim)
    heads = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    sizes = [geometry.num_heads, geometry.num_kv_heads, geometry.num_kv_heads]
    query, key, value = torch.split(heads.to(geometry.dtype), sizes, dim=2)
    return Part(story, query, key, value, mask)


def run(kernels: Kernels, cache: PagedCache, parts: Sequence[Part]) -> list[Tensor]:
    """Run one step, and add its tokens to the stories.

    Returns:
        For each layer ``[num_tokens, H * D]``.
    """
    geometry = parts[0].story.geometry
    batch = Batch(tuple(part.forward() for part in parts))
    metadata = build_metadata(batch, geometry.page_size)
    attention = kernels.plan_attention(batch, metadata, cache, geometry.attention)
    outputs: list[Tensor] = []
    for layer in range(len(geometry.windows)):
        rows = [torch.cat((p.query, p.key, p.value), 2)[:, layer] for p in parts]
        heads = torch.cat(rows)  # [T, H + 2 KV, D], as the decoder has it
        first, last = geometry.num_heads, geometry.num_heads + geometry.num_kv_heads
        parts_of_heads = heads[:, :first], heads[:, first:last], heads[:, last:]
        outputs.append(attention(layer, *parts_of_heads))
    for part in parts:
        part.story.keys.append(part.key)
        part.story.values.append(part.value)
    return outputs
