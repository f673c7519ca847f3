from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.engine_api import PageCopy
from pie_trio.errors import ConfigError
from pie_trio.inference.kv_cache import (
    KvCache,
    allocate_kv_cache,
    kv_bytes_per_page,
    num_pages_in,
)
from pie_trio.inference.model_directory import read_model_directory

if TYPE_CHECKING:
    from pie_trio.inference.models.config import DecoderConfig

NUM_PAGES, PAGE_SIZE = 5, 4


@pytest.fixture
def config(tiny_llama: Path) -> DecoderConfig:
    return read_model_directory(tiny_llama).config


def numbered_cache() -> KvCache:
    shape = (2, 2, NUM_PAGES, PAGE_SIZE, 2, 3)
    return KvCache(torch.arange(float(np.prod(shape))).view(shape))


@st.composite
def page_copies(draw: st.DrawFn) -> PageCopy:
    count = draw(st.integers(1, PAGE_SIZE))
    pages, offsets = st.integers(0, NUM_PAGES - 1), st.integers(0, PAGE_SIZE - count)
    return PageCopy(draw(pages), draw(pages), draw(offsets), draw(offsets), count)


@given(st.lists(page_copies(), max_size=6))
def test_copies_move_all_layers_of_exactly_those_tokens(copies: list[PageCopy]) -> None:
    cache = numbered_cache()
    expected = cache.pages.clone()
    for copy in copies:
        before = expected.clone()
        for token in range(copy.count):
            source = before[:, :, copy.source, copy.source_offset + token]
            expected[:, :, copy.target, copy.target_offset + token] = source
    cache.copy(copies)
    assert torch.equal(cache.pages, expected)


def test_a_layer_shows_keys_and_values_by_slot() -> None:
    cache = numbered_cache()
    keys, values = cache.layer(1)
    assert keys.shape == values.shape == (NUM_PAGES * PAGE_SIZE, 2, 3)
    assert torch.equal(keys[3 * PAGE_SIZE + 2], cache.pages[1, 0, 3, 2])
    assert torch.equal(values[3 * PAGE_SIZE + 2], cache.pages[1, 1, 3, 2])
    keys[0] = -1.0
    assert (cache.pages[1, 0, 0, 0] == -1.0).all()  # no copy
    assert (cache.num_pages, cache.page_size) == (NUM_PAGES, PAGE_SIZE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bytes_of_pages_make_the_round_trip(
    config: DecoderConfig, dtype: torch.dtype
) -> None:
    cache = allocate_kv_cache(config, num_pages=6, page_size=4, dtype=dtype)
    bits = torch.iinfo(torch.int8)
    noise = torch.randint(bits.min, bits.max, cache.pages.view(torch.int8).shape)
    cache.pages.view(torch.int8).copy_(noise)  # NaN of all kinds among them
    before = cache.pages.clone()
    data = cache.read(torch.tensor([4, 1]))
    assert data.shape == (
        2,
        kv_bytes_per_page(config, page_size=4, dtype=dtype),
    )
    cache.write(torch.tensor([0, 5]), data)
    as_bytes = cache.pages.view(torch.uint8)
    expected = before.view(torch.uint8)
    assert torch.equal(as_bytes[:, :, [0, 5]], expected[:, :, [4, 1]])
    assert torch.equal(as_bytes[:, :, 1:5], expected[:, :, 1:5])


def test_cleared_slots_are_zero_in_all_layers() -> None:
    cache = numbered_cache()
    expected = cache.pages.clone()
    expected[:, :, 1, 2] = expected[:, :, 4, 0] = 0.0
    cache.clear(torch.tensor([1 * PAGE_SIZE + 2, 4 * PAGE_SIZE]))
    assert torch.equal(cache.pages, expected)


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_a_page_takes_as_many_bytes_as_are_said(
    config: DecoderConfig, dtype: torch.dtype, width: int
) -> None:
    page_bytes = kv_bytes_per_page(config, page_size=16, dtype=dtype)
    assert (
        page_bytes == 2 * 2 * 16 * 2 * 8 * width
    )  # K and V, layers, tokens, heads, dim
    cache = allocate_kv_cache(config, num_pages=3, page_size=16, dtype=dtype)
    assert cache.pages.nbytes == 3 * page_bytes
    assert not cache.pages.any()


def test_as_many_pages_fit_as_are_said(config: DecoderConfig) -> None:
    page_bytes = kv_bytes_per_page(config, page_size=16, dtype=torch.float32)
    for kv_bytes, expected in [
        (page_bytes, 1),
        (3 * page_bytes - 1, 2),
        (10**9, 244140),
    ]:
        found = num_pages_in(kv_bytes, config, page_size=16, dtype=torch.float32)
        assert found == expected


def test_too_little_memory_for_one_page_is_an_error(config: DecoderConfig) -> None:
    with pytest.raises(
        ConfigError, match="takes 4,096 bytes, but only 4,095 are given"
    ):
        num_pages_in(4095, config, page_size=16, dtype=torch.float32)


def test_a_cache_that_cannot_be_allocated_is_an_error(config: DecoderConfig) -> None:
    with pytest.raises(
        ConfigError, match="cannot be allocated: start with fewer --kv-pages"
    ):
        allocate_kv_cache(config, num_pages=2**45, page_size=16, dtype=torch.float32)


@pytest.mark.parametrize(("num_pages", "page_size"), [(0, 16), (-1, 16), (4, 0)])
def test_a_cache_of_nothing_is_an_error(
    config: DecoderConfig, num_pages: int, page_size: int
) -> None:
    with pytest.raises(ConfigError, match="at least one KV page"):
        allocate_kv_cache(
            config, num_pages=num_pages, page_size=page_size, dtype=torch.float32
        )


def test_a_large_cache_takes_memory_only_where_it_is_written(
    config: DecoderConfig,
) -> None:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("the system does not tell what a process takes")

    def resident_bytes() -> int:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    page_bytes = kv_bytes_per_page(config, page_size=16, dtype=torch.float32)
    before = resident_bytes()
    cache = allocate_kv_cache(
        config, num_pages=(1 << 30) // page_bytes, page_size=16, dtype=torch.float32
    )
    assert resident_bytes() - before < 64 << 20
    assert cache.pages.data_ptr() % 64 == 0
    assert not cache.pages[:, :, 5].any()
