"""Attention in windows and with capped scores, against a loop over tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pie_trio.engine_api import Batch, ForwardRequest
from pie_trio.inference.backends import dot_product, torch_cpu
from pie_trio.inference.backends.torch_cpu import plan_attention
from pie_trio.inference.kv_cache import KvCache
from pie_trio.inference.metadata import build_metadata
from pie_trio.inference.models.config import AttentionConfig, LayerConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

PAGE_SIZE, PAGES_EACH, HEADS, KV_HEADS, DIM = 4, 6, 4, 2, 8


def make_config(
    *windows: int | None, softcap: float | None = None, scale: float = 0.4
) -> AttentionConfig:
    layers = [LayerConfig(window) for window in windows]
    return AttentionConfig.of_layers(layers, scale=scale, softcap=softcap)


def make_cache(num_layers: int, num_pages: int) -> KvCache:
    shape = (num_layers, 2, num_pages, PAGE_SIZE, KV_HEADS, DIM)
    return KvCache(torch.randn(shape))


def make_request(
    pages: Sequence[int],
    num_tokens: int,
    kv_len: int,
    mask: NDArray[np.bool_] | None = None,
) -> ForwardRequest:
    return ForwardRequest(
        token_ids=np.zeros(num_tokens, np.int32),
        positions=np.arange(kv_len - num_tokens, kv_len, dtype=np.int32),
        page_ids=np.array(pages, np.int32),
        kv_len=kv_len,
        mask=mask,
    )


def attend(
    requests: Sequence[ForwardRequest], cache: KvCache, config: AttentionConfig
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Run all layers on random queries, keys and values; return queries and results."""
    batch = Batch(tuple(requests))
    metadata = build_metadata(batch, PAGE_SIZE)
    attention = plan_attention(batch, metadata, cache, config)
    queries: list[torch.Tensor] = []
    results: list[torch.Tensor] = []
    for layer in range(len(config.window_of_layer)):
        query = torch.randn(len(metadata.token_ids), HEADS, DIM)
        key, value = torch.randn(2, len(metadata.token_ids), KV_HEADS, DIM)
        queries.append(query)
        results.append(attention(layer, query, key, value))
    return queries, results


def expect(
    request: ForwardRequest,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    window: int | None,
    config: AttentionConfig,
) -> NDArray[np.float64]:
    """Return what one request's tokens read: token by token."""
    num_tokens, kv_len = len(request.token_ids), request.kv_len
    slots = [
        int(request.page_ids[i // PAGE_SIZE]) * PAGE_SIZE + i % PAGE_SIZE
        for i in range(kv_len)
    ]
    result = np.zeros((num_tokens, HEADS, DIM))
    for token in range(num_tokens):
        own = kv_len - num_tokens + token
        if request.mask is None:
            seen = [i for i in range(kv_len) if i <= own]
        else:
            seen = [i for i in range(kv_len) if request.mask[token, i]]
        if window is not None:
            seen = [i for i in seen if i > own - window]
        if not seen:
            continue
        chosen = [slots[i] for i in seen]
        own_keys = keys[chosen].double().repeat_interleave(HEADS // KV_HEADS, 1)
        own_values = values[chosen].double().repeat_interleave(HEADS // KV_HEADS, 1)
        scores = config.scale * (own_keys * query[token].double()).sum(-1)  # [S, H]
        if config.softcap is not None:
            scores = config.softcap * (scores / config.softcap).tanh()
        weights = scores.softmax(0)[:, :, None]  # [S, H, 1]
        result[token] = (weights * own_values).sum(0).numpy()
    return result.reshape(num_tokens, -1)


@st.composite
def requests(draw: st.DrawFn) -> list[ForwardRequest]:
    made: list[ForwardRequest] = []
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    for index in range(draw(st.integers(1, 5))):
        num_tokens = draw(st.sampled_from([1, 1, 1, 2, 5, 9]))
        kv_len = draw(st.integers(num_tokens, PAGES_EACH * PAGE_SIZE))
        mask = None
        if draw(st.booleans()):  # some rows see nothing inside of a window
            mask = rng.random((num_tokens, kv_len)) < draw(st.sampled_from([0.1, 0.7]))
            mask[:, rng.integers(0, kv_len)] = True
        pages = rng.permutation(np.arange(PAGES_EACH) + index * PAGES_EACH).tolist()
        made.append(make_request(pages, num_tokens, kv_len, mask))
    return made


@settings(max_examples=100)
@given(
    requests(),
    st.lists(st.none() | st.integers(1, 26), min_size=1, max_size=3),
    st.sampled_from([None, 1.5]),
    st.sampled_from([1, 40, 1 << 24]),
    st.sampled_from([1, 4000, 1 << 30]),
)
def test_a_token_reads_what_a_loop_says(
    requests: list[ForwardRequest],
    windows: list[int | None],
    softcap: float | None,
    max_scores: int,
    group_bytes: int,
) -> None:
    config = make_config(*windows, softcap=softcap)
    cache = make_cache(len(windows), 5 * PAGES_EACH)
    with (
        mock.patch.object(dot_product, "_MAX_SCORES", max_scores),
        mock.patch.object(torch_cpu, "_GROUP_KEY_BYTES", group_bytes),
    ):
        queries, results = attend(requests, cache, config)
    for layer, window in enumerate(windows):
        keys, values = cache.layer(layer)
        start = 0
        for request in requests:
            rows = slice(start, start := start + len(request.token_ids))
            expected = expect(
                request, queries[layer][rows], keys, values, window, config
            )
            np.testing.assert_allclose(
                results[layer][rows].numpy(), expected, atol=1e-5
            )


def test_a_token_that_sees_nothing_in_its_window_reads_zeros() -> None:
    mask = np.zeros((2, 9), np.bool_)
    mask[0, 1] = mask[1, 8] = True
    for softcap in (None, 2.0):
        config = make_config(3, softcap=softcap)
        cache = make_cache(1, 6)
        chunk = make_request(range(3), 2, 9, mask)
        decode = make_request(range(3, 6), 1, 9, mask[:1])
        _, (result,) = attend([chunk, decode], cache, config)
        assert not result[0].any()
        assert result[1].all()
        assert not result[2].any()


def test_windows_wider_than_every_context_are_planned_as_one() -> None:
    config = make_config(None, 9, 12, 5)
    cache = make_cache(4, 6)
    batch = Batch((make_request(range(3), 2, 9), make_request(range(3, 6), 1, 4)))
    plan = plan_attention(batch, build_metadata(batch, PAGE_SIZE), cache, config)
    unbounded, just_fits, wide, narrow = plan.parts
    assert unbounded is just_fits is wide
    assert narrow is not unbounded


def test_a_window_gathers_only_what_it_holds() -> None:
    config = make_config(3)
    cache = make_cache(1, 12)
    decode, chunk = make_request(range(6), 1, 20), make_request(range(6, 12), 4, 20)
    batch = Batch((decode, chunk))
    plan = plan_attention(batch, build_metadata(batch, PAGE_SIZE), cache, config)
    sizes = sorted(len(part.slots) for part in plan.parts[0])
    assert sizes == [3, 3 + 4 - 1]
