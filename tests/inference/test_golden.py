"""The trained models against what transformers computed: see golden.json in each."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pie_trio.engine_api import Batch
from pie_trio.inference.engine import open_engine
from tests.inference.conftest import NUM_THREADS
from tests.inference.contexts import Context, generate, page_lists, run

if TYPE_CHECKING:
    from pathlib import Path

    from pie_trio.inference.engine import LoadedModel
    from pie_trio.inference.kernels.choosing import KernelsName

NUM_CASES, NUM_TOKENS, MAX_LEN = 10, 64, 128


@pytest.fixture(scope="module")
def model(golden_directory: Path, kernels_name: KernelsName) -> LoadedModel:
    return open_golden(golden_directory, kernels_name, page_size=16)


@pytest.fixture(scope="module")
def cases(golden_directory: Path) -> list[dict[str, Any]]:
    golden = json.loads((golden_directory / "golden.json").read_text())
    cases: list[dict[str, Any]] = golden["cases"]
    assert len(cases) == NUM_CASES
    return cases


def open_golden(
    directory: Path, kernels: KernelsName, *, page_size: int
) -> LoadedModel:
    return open_engine(
        directory,
        name=directory.name,
        num_pages=2 * NUM_CASES * MAX_LEN // page_size,
        page_size=page_size,
        num_threads=NUM_THREADS,
        kernels=kernels,
    )


def test_each_prompt_alone_gives_the_golden_tokens(
    model: LoadedModel, cases: list[dict[str, Any]]
) -> None:
    for case in cases:
        context = Context(range(MAX_LEN // 16))
        tokens = generate(model.engine, [context], [case["input_ids"]], NUM_TOKENS)
        assert tokens == [case["greedy_ids"]], case["prompt"]


@pytest.mark.parametrize(
    ("page_size", "chunk_size", "stagger"),
    [(16, None, 0), (16, None, 3), (4, 3, 0), (1, 2, 1)],
    ids=["at-once", "staggered", "chunked", "chunked-and-staggered-pages-of-one"],
)
def test_all_prompts_in_one_ragged_batch_give_the_golden_tokens(
    golden_directory: Path,
    kernels_name: KernelsName,
    cases: list[dict[str, Any]],
    page_size: int,
    chunk_size: int | None,
    stagger: int,
) -> None:
    engine = open_golden(golden_directory, kernels_name, page_size=page_size).engine
    pages = page_lists(NUM_CASES, MAX_LEN // page_size, seed=page_size)
    tokens = generate(
        engine,
        [Context(page_ids) for page_ids in pages],
        [case["input_ids"] for case in cases],
        NUM_TOKENS,
        chunk_size=chunk_size,
        stagger=stagger,
    )
    assert tokens == [case["greedy_ids"] for case in cases]


def test_forks_with_copied_tokens_give_the_golden_tokens(
    model: LoadedModel, cases: list[dict[str, Any]]
) -> None:
    """Fork in the middle of a page; then parent and child go on in one batch."""
    pages = page_lists(2, MAX_LEN // 16, seed=3)
    for case in cases:
        parent = Context(pages[0])
        half = case["greedy_ids"][: NUM_TOKENS // 2]
        assert generate(model.engine, [parent], [case["input_ids"]], len(half)) == [
            half
        ]
        child, copies = parent.fork(pages[1], page_size=16)
        contexts = [parent, child]
        first = run(model.engine, *(c.feed(half[-1:]) for c in contexts), copies=copies)
        rest = generate(model.engine, contexts, [[token] for token in first], 31)
        for token, tail in zip(first, rest, strict=True):
            assert [*half, token, *tail] == case["greedy_ids"]


def test_the_first_logits_are_those_of_transformers(
    model: LoadedModel, cases: list[dict[str, Any]]
) -> None:
    for case in cases:
        request = Context(range(8)).feed(case["input_ids"])
        logits = model.engine.forward_logits(Batch((request,)))[0]
        for token_id, expected in case["first_step_top5"]:
            assert logits[token_id] == pytest.approx(expected, abs=1e-4)


def test_the_probabilities_of_all_rows_are_those_of_transformers(
    model: LoadedModel, cases: list[dict[str, Any]]
) -> None:
    for case in cases:
        token_ids = [*case["input_ids"], *case["greedy_ids"][:-1]]
        context = Context(range(8))
        request = context.feed(token_ids, rows=range(len(token_ids)), sampler=None)
        logits = model.engine.forward_logits(Batch((request,))).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        following = [*token_ids[1:], case["greedy_ids"][-1]]
        found = logprobs[np.arange(len(following)), following]
        expected = [*case["prompt_logprobs"], *case["greedy_logprobs"]]
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_tokenizer_gives_the_golden_ids_and_texts(
    model: LoadedModel, cases: list[dict[str, Any]]
) -> None:
    for case in cases:
        ids = model.tokenizer.encode(case["prompt"], add_special_tokens=True)
        assert ids.tolist() == case["input_ids"]
        text = model.tokenizer.decode(case["greedy_ids"], skip_special_tokens=True)
        assert text == case["text"]


def test_bfloat16_agrees_until_a_margin_is_small(
    golden_directory: Path, kernels_name: KernelsName, cases: list[dict[str, Any]]
) -> None:
    engine = open_engine(
        golden_directory,
        name="m",
        num_pages=8,
        dtype="bfloat16",
        num_threads=1,
        kernels=kernels_name,
    ).engine
    for case in cases:
        tokens = generate(engine, [Context(range(8))], [case["input_ids"]], NUM_TOKENS)
        pairs = zip(tokens[0], case["greedy_ids"], case["step_margins"], strict=True)
        margins = [margin for token, expected, margin in pairs if token != expected]
        assert not margins or margins[0] < 0.5
