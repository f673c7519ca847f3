"""What adapters do: the same as models that they were merged into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from pie_trio.engine_api import Batch
from pie_trio.inference.engine import open_engine
from tests.adapter_factory import ALL, ATTENTION, PACKED, write_adapter, write_merged
from tests.inference.contexts import Context, generate
from tests.model_factory import LlamaShape, write_model_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pie_trio.inference.engine import TorchEngine
    from pie_trio.inference.kernels.choosing import KernelsName

PROMPT = [256, *b"Once upon a time, there"]
OTHER = [256, *b"A dog"]
TOLERANCE = 1e-4

# Targets of each adapter, by variant: the second one has layers that the first has not.
TARGETS = {
    "llama": (ALL, ("q_proj", "v_proj")),
    "llama-biased": (ALL, ("k_proj", "up_proj")),
    "qwen2": (("q_proj", "k_proj", "v_proj"), ("o_proj", "down_proj")),
    "gemma2": (ALL, ("gate_proj", "v_proj")),
    "gemma3": (ATTENTION, ("up_proj", "down_proj")),
    "phi3": (PACKED, ("qkv_proj", "down_proj")),
    "qwen3-moe": (ATTENTION, ("v_proj",)),
    "smollm3": (ALL, ("k_proj",)),
}


@dataclass(frozen=True)
class Models:
    """A model with two adapters, and engines that these were merged into."""

    directory: Path
    adapters: dict[str, Path]
    merged: dict[str, Path]


def make_models(path: Path, variant: str, shape: LlamaShape | None = None) -> Models:
    directory = write_model_directory(path / "base", variant, shape)
    adapters, merged = {}, {}
    for seed, (name, targets) in enumerate(
        zip(("first", "second"), TARGETS[variant], strict=True)
    ):
        adapters[name] = write_adapter(path / name, directory, targets, seed=seed)
        merged[name] = write_merged(path / f"with-{name}", directory, adapters[name])
    return Models(directory, adapters, {"": directory, **merged})


def start(directory: Path, kernels: KernelsName, **more: Any) -> TorchEngine:
    return open_engine(
        directory,
        name="m",
        num_pages=64,
        page_size=4,
        num_threads=1,
        kernels=kernels,
        **more,
    ).engine


@pytest.fixture(scope="module")
def get_models(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Models]:
    made: dict[str, Models] = {}

    def get(variant: str) -> Models:
        if variant not in made:
            made[variant] = make_models(tmp_path_factory.mktemp(variant), variant)
        return made[variant]

    return get


def load_all(engine: TorchEngine, models: Models) -> TorchEngine:
    for name, directory in models.adapters.items():
        engine.load_adapter(name, directory)
    return engine


def logits(
    engine: TorchEngine, *parts: tuple[Context, Sequence[int], str]
) -> list[NDArray[np.float32]]:
    """Run one batch and return the logits of all tokens of each context."""
    requests = [
        context.feed(tokens, rows=range(len(tokens)), adapter=adapter)
        for context, tokens, adapter in parts
    ]
    found = engine.forward_logits(Batch(tuple(requests)))
    return np.split(found, np.cumsum([len(tokens) for _, tokens, _ in parts])[:-1])


def context(index: int) -> Context:
    return Context(range(8 * index, 8 * index + 8))


@pytest.mark.parametrize("variant", TARGETS)
def test_a_model_with_an_adapter_is_the_merged_model(
    get_models: Callable[[str], Models], kernels_name: KernelsName, variant: str
) -> None:
    models = get_models(variant)
    engine = load_all(start(models.directory, kernels_name), models)
    (plain,) = logits(engine, (context(5), PROMPT, ""))
    for name in models.adapters:
        merged = start(models.merged[name], kernels_name)
        ours, theirs = context(0), context(0)
        for tokens in (PROMPT, [104], [101, 32, 119]):  # prefill, decode, a chunk
            (found,) = logits(engine, (ours, tokens, name))
            (expected,) = logits(merged, (theirs, tokens, ""))
            np.testing.assert_allclose(found, expected, atol=TOLERANCE)
        (found,) = logits(engine, (context(1), PROMPT, name))
        assert np.abs(found - plain).max() > 0.1  # it does something


@pytest.mark.parametrize("variant", TARGETS)
def test_several_adapters_and_none_share_a_batch(
    get_models: Callable[[str], Models], kernels_name: KernelsName, variant: str
) -> None:
    models = get_models(variant)
    engine = load_all(start(models.directory, kernels_name), models)
    alone = {name: start(path, kernels_name) for name, path in models.merged.items()}
    order = ["first", "", "second", "first", "", "second"]
    prompts = [PROMPT, OTHER, OTHER, PROMPT[:9], PROMPT[:3], PROMPT[:1]]
    ours, theirs = ([context(i) for i in range(6)] for _ in range(2))
    for tokens in (prompts, [[100 + i] for i in range(6)]):
        found = logits(engine, *zip(ours, tokens, order, strict=True))
        for i, name in enumerate(order):
            (expected,) = logits(alone[name], (theirs[i], tokens[i], ""))
            np.testing.assert_allclose(found[i], expected, atol=TOLERANCE)


def test_greedy_tokens_do_not_depend_on_the_batch(
    get_models: Callable[[str], Models], kernels_name: KernelsName
) -> None:
    models = get_models("llama")
    engine = load_all(start(models.directory, kernels_name), models)
    for name in ("first", "second"):
        merged = start(models.merged[name], kernels_name)
        expected = generate(merged, [context(0)], [PROMPT], 8)
        assert generate(engine, [context(0)], [PROMPT], 8, adapter=name) == expected
        prompts = [OTHER, PROMPT, PROMPT]
        together = generate(
            engine,
            [context(i) for i in range(3)],
            prompts,
            8,
            adapter=name,
            chunk_size=5,
            stagger=1,
        )
        assert together[1:] == [expected[0], expected[0]]


def test_rows_without_an_adapter_are_computed_as_ever(
    get_models: Callable[[str], Models], kernels_name: KernelsName
) -> None:
    models = get_models("llama")
    plain = start(models.directory, kernels_name)
    engine = load_all(start(models.directory, kernels_name), models)
    parts = [(context(0), PROMPT, ""), (context(1), OTHER, "")]
    expected = logits(plain, *parts)
    parts = [(context(0), PROMPT, ""), (context(1), OTHER, "first")]
    found = logits(engine, *parts)
    assert (found[0] == expected[0]).all()  # to the last bit
    assert not (found[1] == expected[1]).all()


def test_wide_layers_are_adapted_whatever_their_layout(
    tmp_path: Path, kernels_name: KernelsName
) -> None:
    shape = LlamaShape(hidden_size=320, intermediate_size=640, num_layers=1)
    models = make_models(tmp_path, "llama", shape)
    wide = write_adapter(tmp_path / "wide", models.directory, rank=210, alpha=20)
    merged = write_merged(
        tmp_path / "with-wide", models.directory, wide, scale=20 / 210
    )
    engine = start(models.directory, kernels_name)
    engine.load_adapter("wide", wide)
    (found,) = logits(engine, (context(0), PROMPT, "wide"))
    (expected,) = logits(start(merged, kernels_name), (context(0), PROMPT, ""))
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_an_adapter_adds_to_a_model_in_8_bits(
    get_models: Callable[[str], Models], kernels_name: KernelsName
) -> None:
    models = get_models("llama")
    engine = load_all(start(models.directory, kernels_name, quantize="int8"), models)
    merged = start(models.merged["first"], kernels_name, quantize="int8")
    exact = start(models.merged["first"], kernels_name)
    (expected,) = logits(exact, (context(0), PROMPT, ""))
    (rounded,) = logits(merged, (context(0), PROMPT, ""))
    mixed = logits(engine, (context(0), PROMPT, "first"), (context(1), OTHER, ""))
    (plain,) = logits(engine, (context(2), PROMPT, ""))
    error = np.abs(mixed[0] - expected).mean()
    # As far from the exact results as the merged model in 8 bits is, and not as the base is.
    assert error < 2 * np.abs(rounded - expected).mean()
    assert error < np.abs(plain - expected).mean() / 4
    (alone,) = logits(engine, (context(3), PROMPT, "first"))
    np.testing.assert_allclose(mixed[0], alone, atol=1e-3)


def test_an_adapter_is_computed_in_the_dtype_of_the_model(
    get_models: Callable[[str], Models], kernels_name: KernelsName
) -> None:
    models = get_models("llama")
    engine = load_all(start(models.directory, kernels_name, dtype="bfloat16"), models)
    (expected,) = logits(
        start(models.merged["first"], kernels_name), (context(0), PROMPT, "")
    )
    (found,) = logits(engine, (context(0), PROMPT, "first"))
    (plain,) = logits(engine, (context(1), PROMPT, ""))
    assert np.abs(found - expected).mean() < np.abs(plain - expected).mean() / 10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_stored_factors_may_be_in_half_precision(
    tmp_path: Path, tiny_llama: Path, kernels_name: KernelsName, dtype: torch.dtype
) -> None:
    adapter = write_adapter(tmp_path / "half", tiny_llama, dtype=dtype)
    merged = write_merged(tmp_path / "merged", tiny_llama, adapter)
    engine = start(tiny_llama, kernels_name)
    engine.load_adapter("half", adapter)
    (found,) = logits(engine, (context(0), PROMPT, "half"))
    (expected,) = logits(start(merged, kernels_name), (context(0), PROMPT, ""))
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_patterns_give_modules_ranks_and_scales_of_their_own(
    tmp_path: Path, tiny_llama: Path
) -> None:
    query, up = "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.up_proj"
    adapter = write_adapter(
        tmp_path / "a",
        tiny_llama,
        rank=4,
        alpha=2,
        ranks={query: 2, up: 9},
        config={
            "use_rslora": True,
            "rank_pattern": {"1.self_attn.q_proj": 2, r"layers\.0\.mlp\.up_proj": 9},
            "alpha_pattern": {"o_proj": 1.25},
        },
    )
    scales = {query: 2 / 2**0.5, up: 2 / 9**0.5}
    for layer in range(2):
        scales[f"model.layers.{layer}.self_attn.o_proj"] = 1.25 / 4**0.5
    merged = write_merged(tmp_path / "m", tiny_llama, adapter, scale=1, scales=scales)
    engine = start(tiny_llama, "torch")
    engine.load_adapter("a", adapter)
    (found,) = logits(engine, (context(0), PROMPT, "a"))
    (expected,) = logits(start(merged, "torch"), (context(0), PROMPT, ""))
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
