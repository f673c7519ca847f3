"""Random compositions on the CPU backend against the naive reference."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pie_trio.engine_api import Batch
from pie_trio.inference.backends import torch_cpu
from pie_trio.inference.engine import TorchEngine, open_engine
from tests.inference.conftest import NUM_THREADS
from tests.inference.contexts import Context
from tests.inference.histories import (
    NUM_PAGES,
    PAGE_SIZE,
    PAGES_EACH,
    Feed,
    History,
    check_composition,
    steps,
)
from tests.inference.reference import reference_logits

if TYPE_CHECKING:
    from pathlib import Path

    from pie_trio.inference.kernels.choosing import KernelsName
    from tests.inference.histories import Reference

TOLERANCE = 2e-4


@pytest.fixture(scope="module", params=["tied", "untied"])
def directory(
    request: pytest.FixtureRequest, tiny_llama: Path, untied_llama: Path
) -> Path:
    return tiny_llama if request.param == "tied" else untied_llama


@pytest.fixture(scope="module")
def engine(directory: Path, kernels_name: KernelsName) -> TorchEngine:
    return open_engine(
        directory,
        name="m",
        num_pages=NUM_PAGES,
        page_size=PAGE_SIZE,
        num_threads=NUM_THREADS,
        kernels=kernels_name,
    ).engine


@pytest.fixture(scope="module")
def reference(directory: Path) -> Reference:
    return partial(reference_logits, directory)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    steps=steps(0, 3, 1000),
    fork_after=st.integers(0, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_composition_gives_the_logits_of_the_reference(
    engine: TorchEngine,
    reference: Reference,
    steps: list[list[Feed | None]],
    fork_after: int,
    seed: int,
) -> None:
    check_composition(
        engine, reference, steps, fork_after=fork_after, seed=seed, tolerance=TOLERANCE
    )


@pytest.mark.parametrize("group_bytes", [0, 2000, 1 << 30], ids=["each", "some", "all"])
@pytest.mark.parametrize("min_fill", [0.0, 0.75])
def test_decodes_are_the_same_however_they_are_grouped(
    engine: TorchEngine,
    reference: Reference,
    monkeypatch: pytest.MonkeyPatch,
    group_bytes: int,
    min_fill: float,
) -> None:
    monkeypatch.setattr(torch_cpu, "_GROUP_KEY_BYTES", group_bytes)
    monkeypatch.setattr(torch_cpu, "_GROUP_MIN_FILL", min_fill)
    rng = np.random.default_rng(0)
    page_ids = rng.permutation(NUM_PAGES).reshape(-1, PAGES_EACH).tolist()
    histories = [History(Context(pages)) for pages in page_ids]
    lengths = [9, 30, 1, 17, 31, 8]
    prefills = [
        h.feed(rng, n, is_masked=False, max_gap=0)
        for h, n in zip(histories, lengths, strict=True)
    ]
    engine.forward_logits(Batch(tuple(prefills)))
    decodes = [
        h.feed(rng, 1, is_masked=i % 3 == 1, max_gap=1) for i, h in enumerate(histories)
    ]
    logits = engine.forward_logits(Batch(tuple(decodes)))
    expected = [history.expected(reference)[-1] for history in histories]
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE)


def test_only_the_asked_rows_go_through_the_head(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[torch.Size] = []
    linear = torch.nn.functional.linear

    def record(
        inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        shapes.append(inputs.shape)
        return linear(inputs, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", record)
    requests = (
        Context([0, 1]).feed(range(8), rows=[7, 2]),
        Context([2, 3]).feed(range(5), rows=None),
    )
    logits = engine.forward_logits(Batch(requests))
    assert logits.shape == (2, 258)
    assert shapes[-1][0] == 2
    assert {shape[0] for shape in shapes[:-1]} == {13}  # the whole ragged batch at once


def test_a_long_context_takes_more_than_one_block_of_the_kernel(
    tiny_llama: Path, kernels_name: KernelsName
) -> None:
    engine = open_engine(
        tiny_llama,
        name="m",
        num_pages=1,
        page_size=1400,
        num_threads=NUM_THREADS,
        kernels=kernels_name,
    ).engine
    rng = np.random.default_rng(1)
    history = History(Context([0]))
    found = [
        engine.forward_logits(
            Batch((history.feed(rng, num_tokens, is_masked=is_masked, max_gap=0),))
        )
        for num_tokens, is_masked in [(1200, False), (100, True), (1, False), (1, True)]
    ]
    expected = history.expected(partial(reference_logits, tiny_llama))
    # Twice the tolerance: the largest of 300,000 errors, at positions above 1,000.
    np.testing.assert_allclose(np.concatenate(found), expected, atol=2 * TOLERANCE)
