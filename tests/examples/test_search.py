"""Techniques that look at several texts, and at parts of them, at once."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.examples.running import Examples

STORY = "Once upon a time"
WORDS = "nolzi shirtro golmep"

REFERENCE_BEAM = """
import math
from inferlet_py import *

@inferlet
async def main(prompt: str, width: int, max_tokens: int) -> tuple[str, float]:
    model = get_model()
    start = model.tokenize(prompt, special=True)
    beams = [(0.0, [])]
    for _ in range(max_tokens):
        options = []
        for logprob, tokens in beams:
            with Context() as ctx:
                ctx.append(start + tokens)
                dist = await ctx.forward(top=width)
            options += [(logprob + math.log(p), [*tokens, t]) for t, p in dist]
        beams = sorted(options, key=lambda option: -option[0])[:width]
    return model.detokenize(beams[0][1]), round(beams[0][0], 4)
"""


@pytest.mark.parametrize("width", [2, 5])
def test_a_beam_finds_what_one_without_shared_pages_finds(
    examples: Examples, tmp_path: Path, width: int
) -> None:
    (tmp_path / "app.py").write_text(REFERENCE_BEAM)
    options: dict[str, Any] = {"prompt": STORY, "width": width, "max_tokens": 12}
    run, reference = (
        examples.run("beam_search", **options),
        examples.run(str(tmp_path), **options),
    )
    assert [run.result["text"], run.result["logprob"]] == [
        reference.result[0],
        pytest.approx(reference.result[1], abs=1e-3),
    ]
    assert run.use.tokens < 0.3 * reference.use.tokens


def test_a_beam_of_one_is_greedy_and_a_wider_one_more_likely(
    examples: Examples,
) -> None:
    narrow = examples.run("beam_search", width=1)
    wide = examples.run("beam_search", width=5)
    assert narrow.result["text"] == examples.greedy(STORY, 24)
    assert wide.result["logprob"] > narrow.result["logprob"]


def test_beams_share_the_pages_of_what_they_share(examples: Examples) -> None:
    prompt = "Once upon a time, there was a curious child named Ivan. " * 8
    narrow = examples.run("beam_search", prompt=prompt, width=1, max_tokens=8)
    wide = examples.run("beam_search", prompt=prompt, width=5, max_tokens=8)
    num_full = 8  # at least so many pages of the prompt are full
    assert narrow.use.peak_pages > num_full
    assert wide.use.peak_pages <= narrow.use.peak_pages + 3 * 5
    assert wide.use.peak_pages < 5 * num_full


def test_a_tree_finds_what_a_chain_misses(examples: Examples) -> None:
    tree = examples.run("tree_of_thought")
    chain = examples.run("tree_of_thought", branches=1, keep=1)
    assert tree.result == WORDS
    assert chain.result != WORDS
    # Each of the proposals and verdicts would take the pages of a prompt by itself.
    assert tree.use.tokens < tree.use.forwards * 10


def test_a_search_goes_on_until_a_draft_ends_well(examples: Examples) -> None:
    run = examples.run("mcts")
    assert run.result == WORDS
    first, *_, last = run.text.splitlines()
    assert WORDS not in first
    assert re.fullmatch(rf"\d+: '{WORDS}' 0\.9\d", last)


def test_parts_merge_as_soon_as_two_are_there(examples: Examples) -> None:
    run = examples.run("graph_of_thought")
    assert sorted(run.result.split(", ")) == [
        "blue drum",
        "green boat",
        "red kite",
        "silver bell",
    ]
    lines = run.text.splitlines()
    answers = [line for line in lines if line.startswith("answer")]
    merges = [line for line in lines if line.startswith("merge")]
    assert (len(answers), len(merges)) == (4, 3)
    # One after the other, every answer and every merge has steps of its own.
    assert run.use.steps < 0.7 * run.use.forwards


@pytest.mark.parametrize(
    ("task", "items", "answer"),
    [
        ("Reverse", "nolzi shirtro golmep tosbi", "tosbi golmep shirtro nolzi"),
        ("Largest", "14 61 37 5 88 2", "88"),
        ("Largest", "7", "7"),
    ],
)
def test_recursion_solves_by_parts(
    examples: Examples, task: str, items: str, answer: str
) -> None:
    run = examples.run("recursion_of_thought", task=task, items=items)
    assert run.result == answer
    num_splits = run.text.count("-> Split")
    assert run.text.count("Combine") == num_splits
    assert (num_splits > 0) == (len(items.split()) > 2)


def test_recursion_has_a_bottom(examples: Examples) -> None:
    run = examples.run("recursion_of_thought", max_depth=0)
    assert "Combine" not in run.text


def test_the_points_of_a_skeleton_are_written_at_once(examples: Examples) -> None:
    run = examples.run("skeleton_of_thought", num_points=4)
    assert len({section["point"] for section in run.result}) == 4
    for section in run.result:
        assert "owl" in section["text"]
        assert len(re.findall(r"\.( |$)", section["text"])) == 3
    one = examples.run("skeleton_of_thought", num_points=2)
    assert run.use.forwards > 1.3 * one.use.forwards
    assert run.use.steps < 1.5 * one.use.steps


def test_the_judge_finds_the_best_of_n(examples: Examples) -> None:
    run = examples.run("best_of_n")
    scores = [answer["score"] for answer in run.result]
    assert run.result[0]["text"] == WORDS
    assert len(scores) == 8
    assert scores == sorted(scores, reverse=True)
    assert sum(answer["text"] == WORDS for answer in run.result) < 4
    assert run.use.steps < 0.5 * run.use.forwards


def test_most_answers_agree_on_the_right_one(examples: Examples) -> None:
    run = examples.run("self_consistency")
    assert run.result == "The code of Tom is 7350."
    counts = [int(line.split(" x ")[0]) for line in run.text.splitlines()]
    assert sum(counts) == 9
    assert len(counts) > 1
    assert counts[0] == max(counts)


REFERENCE_SCORES = """
import math
from inferlet_py import *

@inferlet
async def main(prompt: str, texts: list[str]) -> list[float]:
    found = []
    for text in texts:
        with Context() as ctx:
            await ctx.fill(prompt)
            logprob = 0.0
            for token in [*ctx.model.tokenize(text), ctx.model.info.eos_tokens[0]]:
                logprob += math.log((await ctx.forward(top=256)).prob(token))
                ctx.append([token])
        found.append(logprob)
    return found
"""


def test_matches_come_with_the_probabilities_of_the_model(
    examples: Examples, tmp_path: Path
) -> None:
    from examples.output_validation.app import PROMPT

    run = examples.run("output_validation")
    texts = [match["text"] for match in run.result]
    assert texts[0] == "positive"
    assert sorted(texts) == ["negative", "neutral", "positive"]
    (tmp_path / "app.py").write_text(REFERENCE_SCORES)
    reference = examples.run(str(tmp_path), prompt=PROMPT, texts=texts).result
    assert [m["logprob"] for m in run.result] == pytest.approx(reference, abs=1e-2)


def test_matches_come_in_order_and_match(examples: Examples) -> None:
    pattern = ", there was a (curious|young|kind|quiet) (child|cook|sailor)"
    run = examples.run("output_validation", prompt=STORY, pattern=pattern, count=5)
    probs = [match["logprob"] for match in run.result]
    assert probs == sorted(probs, reverse=True)
    assert len(probs) == 5
    for match in run.result:
        assert re.fullmatch(pattern, match["text"])
