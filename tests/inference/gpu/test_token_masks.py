"""Masks that are applied on the device against those of the host: bit by bit the same."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.engine_api import Batch, OutputSpec, ProcessorSpec, SamplerSpec
from pie_trio.errors import ProcessorError
from pie_trio.inference.engine import TorchEngine, open_engine
from pie_trio.inference.gpu.token_masks import as_bytes, forbid
from pie_trio.inference.processors.changes import change_logits, token_masks
from pie_trio.inference.processors.processor import Processor
from tests.inference.contexts import Context, execute, int32, page_lists, run
from tests.inference.gpu.fake_runtime import FakeRuntime
from tests.inference.gpu.fakes import fake_kernels, open_fake, step_of

if TYPE_CHECKING:
    from pathlib import Path

DRAW = SamplerSpec(temperature=1.3, seed=5)
SCHEMA = json.dumps({"type": "object", "properties": {"a": {"type": "boolean"}}})


@given(
    vocab_size=st.sampled_from([1, 8, 31, 32, 33, 100]),
    kinds=st.lists(
        st.sampled_from(["list", "grammar", "both"]), min_size=1, max_size=4
    ),
    seed=st.integers(0, 2**32 - 1),
    density=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_logits_are_those_of_the_host_bit_by_bit(
    vocab_size: int, kinds: list[str], seed: int, density: float
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0.0, 9.0, (len(kinds), vocab_size)).astype(np.float32)
    logits[rng.random(logits.shape) < 0.1] = -0.0
    num_words = -(-vocab_size // 32)
    # Bits beyond the vocabulary mean nothing.
    words = rng.integers(0, 2**32, (len(kinds), num_words), np.uint32)
    words &= rng.integers(0, 2**32, words.shape, np.uint32) if density < 1.0 else words
    if not density:
        words[:] = 0
    processors: list[Processor] = []
    for kind in kinds:
        chosen = np.flatnonzero(rng.random(vocab_size) < 0.5).tolist() or [0]
        spec = ProcessorSpec(
            allowed_tokens=None if kind == "grammar" else tuple(chosen)
        )
        matcher: Any = None if kind == "list" else object()
        processors.append(Processor(spec, vocab_size=vocab_size, matcher=matcher))
        assert processors[-1].is_mask
    expected = logits.copy()
    change_logits(expected, processors, words)
    is_empty = ~np.isfinite(expected).any(axis=1)
    expected[is_empty] = 0.0
    bits = as_bytes(token_masks(processors, words))
    found, found_empty = forbid(torch.from_numpy(logits), torch.from_numpy(bits))
    assert found.numpy().tobytes() == expected.tobytes()
    assert found_empty.tolist() == is_empty.tolist()


@pytest.mark.parametrize(
    "more",
    [
        {"bias": ((3, 1.0),)},
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.1},
        {"frequency_penalty": 0.1},
        {"dry_multiplier": 0.1},
        {"mirostat_tau": 3.0},
    ],
)
def test_what_else_a_processor_does_is_for_the_host(more: dict[str, Any]) -> None:
    spec = ProcessorSpec(allowed_tokens=(1,), **more)
    assert not Processor(spec, vocab_size=9, matcher=None).is_mask


def open_both(directory: Path) -> list[TorchEngine]:
    cpu = open_engine(
        directory, name="m", num_pages=64, page_size=4, num_threads=1
    ).engine
    if "grammar" not in cpu.info.traits:
        pytest.skip("llguidance is not installed")
    return [open_fake(directory, num_pages=64, page_size=4), cpu]


SPECS = {
    1: ProcessorSpec(grammar_kind="json-schema", grammar=SCHEMA),
    2: ProcessorSpec(grammar_kind="regex", grammar="(ab|cd)*", allowed_tokens=(*range(97, 121),)),
    3: ProcessorSpec(repetition_penalty=1.4, allowed_tokens=(*range(32, 127),)),
    4: ProcessorSpec(allowed_tokens=(65, 66, 67)),
    5: ProcessorSpec(mirostat_tau=2.0),
}  # fmt: skip


def test_a_mixed_batch_draws_what_the_cpu_draws(tiny_llama: Path) -> None:
    """Grammars, lists, penalties, Mirostat and late filters, beside rows without anything."""
    found: list[list[int]] = []
    late = SamplerSpec(temperature=1.0, seed=2, typical_p=0.8)
    filtered = SamplerSpec(temperature=1.0, seed=8, top_p=0.9)
    rows = [
        (1, DRAW),
        (2, DRAW),
        (3, filtered),
        (4, late),
        (5, DRAW),
        (0, late),
        (0, DRAW),
    ]
    for engine in open_both(tiny_llama):
        for number, spec in SPECS.items():
            engine.create_processor(number, spec)
        contexts = [Context(p) for p in page_lists(len(rows), 8)]
        fed, tokens = [[256, 65]] * len(rows), list[int]()
        for _ in range(12):
            last = run(
                engine,
                *(
                    c.feed(t, sampler=s, processor=p, accept_sampled=p > 0)
                    for c, t, (p, s) in zip(contexts, fed, rows, strict=True)
                ),
            )
            tokens += last
            fed = [[token] for token in last]
        found.append(tokens)
    assert found[0] == found[1]
    assert {found[0][i] for i in range(3, len(found[0]), len(rows))} <= {65, 66, 67}


def test_a_grammar_brings_back_no_logits(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = FakeRuntime()
    kernels = fake_kernels(runtime=runtime)
    engine = open_fake(tiny_llama, num_pages=64, page_size=4, kernels=kernels)
    if "grammar" not in engine.info.traits:
        pytest.skip("llguidance is not installed")
    engine.create_processor(1, SPECS[1])
    contexts = [Context(p) for p in page_lists(2, 16)]
    run(engine, *(c.feed([1, 2]) for c in contexts))
    monkeypatch.setattr(torch.Tensor, "cpu", None)
    runtime.pinned_sizes.clear()
    for _ in range(4):
        run(
            engine,
            contexts[0].feed([9], sampler=DRAW, processor=1, accept_sampled=True),
            contexts[1].feed([9], sampler=DRAW),
        )
    assert len(runtime.pinned_sizes) == 4
    assert sum(runtime.pinned_sizes) < 400
    assert step_of(engine).num_replays == 4


def test_one_row_of_logits_is_drawn_from_with_and_without_a_mask(
    tiny_llama: Path,
) -> None:
    found: list[list[int]] = []
    for engine in open_both(tiny_llama):
        engine.create_processor(4, SPECS[4])
        request = Context(range(4)).feed([256, 5, 6])
        request.outputs = tuple(
            OutputSpec(int32(2), DRAW, processor=processor) for processor in (0, 4, 0)
        )
        (outputs,) = execute(engine, Batch((request,)))
        found.append([int(output.token_ids[0]) for output in outputs])
    assert found[0] == found[1]
    assert found[0][0] == found[0][2] != found[0][1]
    assert found[0][1] in (65, 66, 67)


def test_a_mask_that_leaves_nothing_fails_its_request_alone(tiny_llama: Path) -> None:
    for engine in open_both(tiny_llama):
        engine.create_processor(
            1, ProcessorSpec(grammar_kind="regex", grammar="a+", allowed_tokens=(66,))
        )
        for number in (3, 4):
            engine.create_processor(number, SPECS[number])
        contexts = [Context(p) for p in page_lists(3, 8)]
        results = engine.execute(
            Batch(
                tuple(
                    c.feed([1], sampler=DRAW, processor=p, accept_sampled=True)
                    for c, p in zip(contexts, (3, 4, 1), strict=True)
                )
            )
        ).forwards
        assert isinstance(results[2], ProcessorError)
        assert "no token is left" in str(results[2])
        assert not any(isinstance(result, Exception) for result in results[:2])
