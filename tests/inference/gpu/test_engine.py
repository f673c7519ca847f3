"""The engine of the GPU from end to end, over the fake library: the same results as on the CPU."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pie_trio.engine_api import Batch, ProcessorSpec, SamplerSpec
from pie_trio.inference.engine import TorchEngine, open_engine
from pie_trio.inference.gpu.upload import Uploader
from tests.adapter_factory import ALL, write_adapter
from tests.inference.contexts import Context, first_outputs, generate, page_lists, run
from tests.inference.gpu.fake_flashinfer import FakeFlashInfer
from tests.inference.gpu.fake_runtime import FakeRuntime
from tests.inference.gpu.fakes import fake_kernels, library_of, open_fake, step_of
from tests.inference.histories import (
    NUM_PAGES,
    PAGE_SIZE,
    Feed,
    check_composition,
    steps,
)
from tests.inference.reference import reference_logits
from tests.model_factory import LlamaShape, write_llama_directory, write_model_directory
from tests.model_families import VARIANTS

if TYPE_CHECKING:
    from pathlib import Path

TOLERANCE = 2e-4
PROMPTS = [
    [256, *b"Once upon a time"],
    [256, *b"A dog"],
    [256],
    [256, *b"The end of it"],
]


@pytest.fixture(scope="module")
def composed(untied_llama: Path) -> TorchEngine:
    return open_fake(untied_llama, num_pages=NUM_PAGES, page_size=PAGE_SIZE)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    steps=steps(0, 3, 1000),
    fork_after=st.integers(0, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_composition_gives_the_logits_of_the_reference(
    composed: TorchEngine,
    untied_llama: Path,
    steps: list[list[Feed | None]],
    fork_after: int,
    seed: int,
) -> None:
    """Prefills, chunks, decodes, masks, forks, gaps of positions, pages in any order."""
    reference = partial(reference_logits, untied_llama)
    check_composition(
        composed,
        reference,
        steps,
        fork_after=fork_after,
        seed=seed,
        tolerance=TOLERANCE,
    )


def test_compositions_have_used_every_kind_of_kernel(composed: TorchEngine) -> None:
    calls = {*library_of(composed).calls}
    assert {"decode.run", "prefill.run", "masked.run"} <= calls
    assert step_of(composed).num_replays > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family_gives_the_logits_of_the_cpu(tmp_path: Path, variant: str) -> None:
    """Windows, soft caps, norms of heads, partial and scaled rotations, experts."""
    directory = write_model_directory(tmp_path / "model", variant)
    options = {"num_pages": 40, "page_size": 4}
    ours = open_fake(directory, **options)
    theirs = open_engine(
        directory, name="cpu", num_pages=40, page_size=4, num_threads=1, kernels="torch"
    ).engine
    rng = np.random.default_rng(0)
    pages = page_lists(4, 10, seed=1)
    contexts = [[Context(p) for p in pages] for _ in range(2)]
    for sizes in ([17, 3, 1, 9], [1, 1, 1, 1], [5, 1, 12, 1], [1, 1, 1, 1]):
        tokens = [rng.integers(0, 256, size).tolist() for size in sizes]
        found, expected = (
            engine.forward_logits(
                Batch(tuple(c.feed(t) for c, t in zip(own, tokens, strict=True)))
            )
            for engine, own in zip((ours, theirs), contexts, strict=True)
        )
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    assert (step_of(ours).num_replays == 2) == (ours.info.architecture not in MIXED)


MIXED = ("MixtralForCausalLM", "Qwen3MoeForCausalLM")
"""Experts are chosen on the host, so that no graph is possible."""


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_trained_models_give_the_golden_tokens(
    golden_directory: Path, chunk_size: int | None
) -> None:
    cases = json.loads((golden_directory / "golden.json").read_text())["cases"][:4]
    engine = open_fake(golden_directory, num_pages=64, page_size=8)
    tokens = generate(
        engine,
        [Context(page_ids) for page_ids in page_lists(4, 16, seed=2)],
        [case["input_ids"] for case in cases],
        24,
        chunk_size=chunk_size,
        stagger=2,
    )
    assert tokens == [case["greedy_ids"][:24] for case in cases]
    assert step_of(engine).num_replays > 10


def test_bfloat16_goes_through_what_the_library_really_has(tmp_path: Path) -> None:
    """The strict fake: no float32, heads of 64, groups without tensor cores."""
    shape = LlamaShape(hidden_size=64, num_heads=6, num_kv_heads=2, head_dim=64)
    directory = write_llama_directory(tmp_path / "model", shape)
    kernels = fake_kernels(FakeFlashInfer())
    ours = open_fake(
        directory, num_pages=64, page_size=16, dtype="bfloat16", kernels=kernels
    )
    theirs = open_engine(
        directory, name="cpu", num_pages=64, dtype="bfloat16", num_threads=1
    ).engine
    found, expected = (
        engine.forward_logits(
            Batch((Context([3, 1]).feed(PROMPTS[0], rows=range(17)),))
        )
        for engine in (ours, theirs)
    )
    # Logits of ten are 0.06 apart in bfloat16.
    assert np.abs(found - expected).mean() < 0.08
    assert np.abs(expected).mean() > 1.0
    decode = [w for w in library_of(ours).wrappers if w.is_graph]
    assert decode
    assert not any(wrapper.is_tensor_cores for wrapper in decode)


def test_wide_groups_decode_on_tensor_cores(untied_llama: Path) -> None:
    engine = open_fake(untied_llama, num_pages=8, page_size=4)  # 4 heads for one
    assert all(w.is_tensor_cores for w in library_of(engine).wrappers)


def test_adapters_share_a_batch_with_the_plain_model(tmp_path: Path) -> None:
    directory = write_llama_directory(tmp_path / "model")
    adapter = write_adapter(tmp_path / "adapter", directory, ALL, seed=1)
    found: list[list[list[int]]] = []
    for engine in (
        open_fake(directory, num_pages=40, page_size=4),
        open_engine(
            directory, name="m", num_pages=40, page_size=4, num_threads=1
        ).engine,
    ):
        engine.load_adapter("style", adapter)
        contexts = [Context(p) for p in page_lists(4, 10)]
        tokens, fed = [], PROMPTS
        for _ in range(6):
            names = ["style", "", "", "style"]
            parts = zip(contexts, fed, names, strict=True)
            last = run(engine, *(c.feed(t, adapter=a) for c, t, a in parts))
            tokens.append(last)
            fed = [[token] for token in last]
        found.append(tokens)
    assert found[0] == found[1]


SAMPLERS = [
    SamplerSpec(),
    SamplerSpec(temperature=1.0, seed=3),
    SamplerSpec(temperature=0.7, top_k=5, seed=9),
    SamplerSpec(temperature=1.3, top_p=0.8, min_p=0.02, seed=1),
]


def test_sampled_tokens_are_those_of_the_cpu(tiny_llama: Path) -> None:
    found: list[list[int]] = []
    for engine in (
        open_fake(tiny_llama, num_pages=64, page_size=4),
        open_engine(
            tiny_llama, name="m", num_pages=64, page_size=4, num_threads=1
        ).engine,
    ):
        contexts = [Context(p) for p in page_lists(4, 16)]
        fed, tokens = PROMPTS, list[int]()
        for _ in range(12):
            parts = zip(contexts, fed, SAMPLERS, strict=True)
            last = run(engine, *(c.feed(t, sampler=s) for c, t, s in parts))
            tokens += last
            fed = [[token] for token in last]
        found.append(tokens)
    assert found[0] == found[1]


def test_a_step_that_samples_brings_back_no_logits(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = FakeRuntime()
    kernels = fake_kernels(runtime=runtime)
    engine = open_fake(tiny_llama, num_pages=64, page_size=4, kernels=kernels)
    monkeypatch.setattr(torch.Tensor, "cpu", None)
    runtime.pinned_sizes.clear()
    contexts = [Context(p) for p in page_lists(4, 16)]
    run(engine, *(c.feed(t) for c, t in zip(contexts, PROMPTS, strict=True)))
    assert len(runtime.pinned_sizes) == 1
    assert runtime.pinned_sizes[0] < 400


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_everything_goes_to_the_device_in_one_copy(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, num_tokens: int
) -> None:
    engine = open_fake(tiny_llama, num_pages=64, page_size=4)
    engine.create_processor(1, ProcessorSpec(allowed_tokens=(65, 66)))
    contexts = [Context(p) for p in page_lists(2, 16)]
    run(engine, *(c.feed([1, 2]) for c in contexts))
    sizes: list[int] = []
    upload = Uploader.upload

    def count(self: Uploader, arrays: Any, into: Any = None) -> dict[str, torch.Tensor]:
        sizes.append(len(arrays))
        return upload(self, arrays, into)

    monkeypatch.setattr(Uploader, "upload", count)
    draw = SamplerSpec(temperature=1.0)
    first = contexts[0].feed([5] * num_tokens, sampler=draw, processor=1)
    run(engine, first, contexts[1].feed([7] * num_tokens, sampler=draw))
    assert len(sizes) == 1
    assert step_of(engine).num_replays == (num_tokens == 1)


def test_weights_that_break_fail_their_request_alone(tiny_llama: Path) -> None:
    engine = open_fake(tiny_llama, num_pages=64, page_size=4)
    model, _, embeds = engine._open()
    embeds[3] = torch.nan
    contexts = [Context(p) for p in page_lists(3, 16)]
    good = contexts[0].feed(PROMPTS[0])
    bad = contexts[1].feed([65, 66], input_slots=[-1, 3])
    results = engine.execute(Batch((good, bad))).forwards
    assert not isinstance(results[0], Exception)
    assert isinstance(results[1], Exception)
    # Whoever gets its pages next is not broken by what lies there.
    other = Context(contexts[1].page_ids.tolist())
    (output,) = first_outputs(engine, other.feed(PROMPTS[1]))
    expected = first_outputs(engine, contexts[2].feed(PROMPTS[1]))
    assert output.token_ids.tolist() == expected[0].token_ids.tolist()
    assert model.dtype == torch.float32
