"""Plant induction heads into an untrained model.

Half of what ``pie-tiny`` must do is copying: what followed this token before? Two
layers of attention can do it (Olsson et al. 2022, arXiv:2209.11895), but finding that
by descent takes most of a short run. So we write it into the initial weights:

- layer 0, heads 0 and 1: look one and two tokens back, store what is there;
- layer 1, all heads: look where the stored tokens are the present ones, and add the
  embedding found there to the prediction.

Training changes every one of these weights; they are a start and nothing more.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Generator

from training.model import Layer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from training.model import Attention, Llama, ModelConfig

# Dimension 0 of each embedding is the same constant, in place of the biases that Llama
# lacks: queries and keys made from it depend on the position alone. Scales are in units
# of the embedding's standard deviation.
_CONSTANT = 4.0
_STORE_SCALE = 1.5
_COPY_SCALE = 10.0
_TWIN_SHARE = 1.0
_POSITION_SHARPNESS = 1.8
_MATCH_SHARPNESS = 1.2


def _orthonormal(rows: int, columns: int, generator: Generator) -> Tensor:
    """Return orthonormal rows that are blind to the constant dimension."""
    matrix = torch.randn(columns - 1, rows, generator=generator)
    basis, _ = torch.linalg.qr(matrix)
    return torch.cat((torch.zeros(rows, 1), basis.T), dim=1)


def _frequencies(config: ModelConfig) -> Tensor:
    half = config.head_dim // 2
    return config.rope_theta ** -(torch.arange(half, dtype=torch.float32) / half)


def _look_back(attention: Attention, config: ModelConfig) -> None:
    """Make heads 0 and 1 attend one and two tokens back, whatever the tokens are."""
    half, dim = config.head_dim // 2, config.head_dim
    frequencies = _frequencies(config)
    # Only what turns fast enough tells neighbours apart.
    strength = _POSITION_SHARPNESS * (frequencies > 0.02)  # [D / 2]
    attention.k_proj.weight[:dim].zero_()
    attention.k_proj.weight[:half, 0] = strength
    for head in range(2):
        angles = frequencies * (head + 1)
        rows = attention.q_proj.weight[head * dim : (head + 1) * dim]
        rows.zero_()
        rows[:half, 0] = strength * angles.cos()
        rows[half:, 0] = -strength * angles.sin()


def _slow_dims(config: ModelConfig) -> Tensor:
    """Return the dimensions of a head that rotary embedding hardly turns."""
    half = config.head_dim // 2
    pairs = torch.arange(half)[_frequencies(config) < 0.01]
    return torch.cat((pairs, pairs + half))


def _attention(model: Llama, index: int) -> Attention:
    layer = model.layers[index]
    assert isinstance(layer, Layer), "Llama makes them"
    return layer.self_attn


@torch.no_grad()
def plant_induction(
    model: Llama, seed: int, twins: Sequence[tuple[int, int]] = ()
) -> None:
    """Overwrite parts of the embedding and of the first two layers of ``model``.

    Args:
        model: An untrained model.
        seed: Of the random directions.
        twins: Pairs of tokens that are one word with and without a leading space.
            They begin alike, so that a word in a sentence is found from one in quotes.
    """
    config, unit = model.config, model.config.embedding_std
    dim, size = config.head_dim, config.hidden_size
    generator = Generator().manual_seed(seed)
    embedding = model.embed_tokens.weight
    for bare, spaced in twins:
        mixed = _TWIN_SHARE * embedding[spaced] + embedding[bare]
        embedding[bare] = mixed / math.sqrt(1 + _TWIN_SHARE**2)
    embedding[:, 0] = _CONSTANT * unit
    first, second = (_attention(model, index) for index in range(2))

    # What each token is (read), and where its predecessors are kept (one, two).
    read = _orthonormal(dim, size, generator)  # [D, H]
    stored = _orthonormal(2 * dim, size, generator)
    one, two = stored[:dim], stored[dim:]
    _look_back(first, config)
    first.v_proj.weight[:dim] = read
    first.o_proj.weight[:, :dim] = _STORE_SCALE * unit * one.T
    first.o_proj.weight[:, dim : 2 * dim] = _STORE_SCALE * unit * two.T

    query, key = _matching(config, read, one, two, generator)
    _look_up(second, config, query, key)
    found = _orthonormal(config.num_kv_heads * dim, size, generator)
    second.v_proj.weight.copy_(found)
    group = config.num_heads // config.num_kv_heads
    written = found.view(config.num_kv_heads, dim, size)
    written = written.repeat_interleave(group, dim=0).flatten(0, 1)
    second.o_proj.weight.copy_(_COPY_SCALE * unit / group * written.T)


def _matching(
    config: ModelConfig, read: Tensor, one: Tensor, two: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Return query and key that agree where the two tokens before the key's are ours.

    That is, the present token is the one stored before the key, and our predecessor
    the one stored before that. Both are compared in random directions.
    """
    slow = _slow_dims(config)
    near = slow[: math.ceil(len(slow) * 0.65)]
    far = slow[len(near) :]
    mix_near, mix_far = (
        _orthonormal(len(dims), config.head_dim + 1, generator)[:, 1:]
        for dims in (near, far)
    )
    query, key = (torch.zeros(config.head_dim, config.hidden_size) for _ in range(2))
    query[near], key[near] = mix_near @ read, mix_near @ one
    query[far], key[far] = mix_far @ one, mix_far @ two
    return query, key


def _look_up(
    attention: Attention, config: ModelConfig, query: Tensor, key: Tensor
) -> None:
    scale = _MATCH_SHARPNESS * math.sqrt(config.head_dim) / 2
    attention.q_proj.weight.copy_(scale * query.repeat(config.num_heads, 1))
    attention.k_proj.weight.copy_(key.repeat(config.num_kv_heads, 1))
