"""How many KV pages fit, and what is said when they do not."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pie_trio.application.engines.memory import (
    MAX_DEFAULT_PAGES,
    AvailableMemory,
    find_memory,
    format_bytes,
    measure_model,
    parse_bytes,
    size_models,
)
from pie_trio.config import ModelConfig
from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

SHAPES = {
    "model.embed_tokens.weight": [100, 64],
    "model.layers.0.w": [64, 64],
    "b": [64],
}
WEIGHTS = 100 * 64 + 64 * 64 + 64
EMBEDS = 4096 * 64
PAGE_BYTES = 16 * 2 * 2 * 2 * 16 * 4
"""Tokens, keys and values, layers, heads, numbers, bytes."""

GIB = 1 << 30


@pytest.fixture
def model(tmp_path: Path) -> ModelConfig:
    """A directory with the headers of a model: there is nothing in it to load."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 96,
        "vocab_size": 100,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64,
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "eos_token_id": 1,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    header = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
        for name, shape in SHAPES.items()
    }
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    return ModelConfig(tmp_path, "small")


def there_are(num_bytes: int) -> AvailableMemory:
    return AvailableMemory(num_bytes, "a test")


def pages(model: ModelConfig, num_bytes: int, most: int | None = None) -> int | None:
    (found,) = size_models(
        [model], default_kv_bytes=most, available=there_are(num_bytes)
    )
    return found.num_pages


def test_a_model_is_measured_in_the_numbers_that_it_is_computed_with(
    model: ModelConfig,
) -> None:
    plain = measure_model(model)
    assert plain.weight_bytes == 4 * (WEIGHTS + EMBEDS)
    assert plain.page_bytes == PAGE_BYTES
    half = measure_model(replace(model, dtype="auto"))
    assert half.weight_bytes == plain.weight_bytes // 2
    assert half.page_bytes == PAGE_BYTES // 2
    small = measure_model(replace(model, quantize="int8"))
    assert small.weight_bytes == plain.weight_bytes - 3 * 64 * 64


def test_what_every_process_has_counts_for_each(model: ModelConfig) -> None:
    alone = measure_model(model)
    shared = measure_model(replace(model, tensor_parallel=4))
    more = 3 * 4 * (100 * 64 + 64 + EMBEDS)  # embedding, norm
    assert shared.weight_bytes == alone.weight_bytes + more
    assert shared.page_bytes == alone.page_bytes


def test_pages_leave_room_for_weights_and_a_reserve(model: ModelConfig) -> None:
    weights = measure_model(model).weight_bytes
    found = pages(model, GIB // 2)
    assert found == (GIB // 2 - weights - (256 << 20)) // PAGE_BYTES
    large = replace(model, page_size=1024)
    assert pages(large, 8 * GIB) == (6 * GIB - weights) // (64 * PAGE_BYTES)
    assert pages(model, 100 * GIB) == MAX_DEFAULT_PAGES
    assert pages(model, 100 * GIB, most=64 << 20) == (64 << 20) // PAGE_BYTES
    assert pages(model, 300 << 20, most=64 << 20) == (
        ((300 << 20) - weights - (256 << 20)) // PAGE_BYTES
    )


def test_what_the_operator_wants_is_given_where_it_fits(model: ModelConfig) -> None:
    assert pages(replace(model, num_pages=7), GIB) == 7
    assert pages(replace(model, kv_bytes=10 * PAGE_BYTES + 1), GIB) == 10
    assert pages(replace(model, kv_bytes=GIB // 2), GIB) == GIB // 2 // PAGE_BYTES


@pytest.mark.parametrize("wish", [{"num_pages": 1 << 20}, {"kv_bytes": 4 * GIB}])
def test_what_does_not_fit_is_refused_with_what_would(
    model: ModelConfig, wish: dict[str, Any]
) -> None:
    wanted = replace(model, **wish)
    with pytest.raises(ConfigError) as caught:
        pages(wanted, GIB)
    message = str(caught.value)
    assert "small has 1.04 MiB of weights in float32" in message
    assert "only 1 GiB of memory are available (a test)" in message
    offered = (GIB - measure_model(model).weight_bytes) // PAGE_BYTES
    assert f"({offered:,} pages)" in message
    assert pages(replace(model, num_pages=offered), GIB) == offered
    with pytest.raises(ConfigError):
        pages(replace(model, num_pages=offered + 1), GIB)


def test_weights_that_do_not_fit_are_refused(model: ModelConfig) -> None:
    with pytest.raises(ConfigError, match="serve a smaller model"):
        pages(model, 1 << 20)
    with pytest.raises(ConfigError, match="a KV page of small takes"):
        pages(replace(model, kv_bytes=100), GIB)


def test_several_models_share_what_is_left(model: ModelConfig) -> None:
    fixed = replace(model, name="fixed", num_pages=1000)
    other = replace(model, name="other")
    found = size_models([model, fixed, other], available=there_are(GIB))
    weights = 3 * measure_model(model).weight_bytes
    left = GIB - weights - 1000 * PAGE_BYTES - (256 << 20)
    assert [m.num_pages for m in found] == [
        left // 2 // PAGE_BYTES,
        1000,
        left // 2 // PAGE_BYTES,
    ]


def test_the_machine_tells_what_is_available(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  9 kB\nMemFree: 1 kB\nMemAvailable:   2048 kB\n")
    found = find_memory(meminfo=meminfo, cgroups=tmp_path / "none")
    assert found == AvailableMemory(2 << 20, "the machine's memory")


@pytest.mark.parametrize(
    ("limit", "left"), [("1000000", 1_000_000 - 600_000 + 50_000), ("max", 2 << 20)]
)
def test_a_cgroup_may_allow_less_than_the_machine_has(
    tmp_path: Path, limit: str, left: int
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemAvailable: 2048 kB\n")
    cgroups = tmp_path / "cgroup"
    for folder in (cgroups, cgroups / "memory"):  # as v2 and as v1 has it
        folder.mkdir()
        (folder / "memory.max").write_text(limit + "\n")
        (folder / "memory.current").write_text("600000\n")
        (folder / "memory.stat").write_text("active_file 7\ninactive_file 50000\n")
    assert find_memory(meminfo=meminfo, cgroups=cgroups).num_bytes == left


def test_this_machine_has_some_memory() -> None:
    assert find_memory().num_bytes > 1 << 20


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("2GiB", 2 << 30),
        ("512M", 512 << 20),
        ("1.5 gb", 3 << 29),
        ("7", 7),
        ("8kB", 8192),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1G", "2 GiBs", "1e9", "0x10"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the caller says what it was for
        parse_bytes(text)


def test_sizes_are_shown_short() -> None:
    assert [format_bytes(n) for n in (5, 81920, 3 << 29)] == [
        "5 bytes",
        "80 KiB",
        "1.5 GiB",
    ]
