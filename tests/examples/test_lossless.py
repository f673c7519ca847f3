"""Techniques that save work and change no token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from examples.prefix_caching.app import NOTES
from examples.prefix_tree.app import PROMPTS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.examples.running import Examples

STORY = "Once upon a time"
COPY = (
    "<|im_start|>user\nRepeat exactly.\ncoat britho orange ladder kasmehan 86 303 "
    "drixpivox stone<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.mark.parametrize("prompt", [STORY, COPY], ids=["story", "copy"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("speculative_decoding", {"num_drafted": 4}),
        ("speculative_decoding", {"num_drafted": 9, "ngram": 1}),
        ("draft_model_speculation", {"num_drafted": 4}),
        ("draft_model_speculation", {"num_drafted": 7}),
        ("jacobi_decoding", {"window": 4}),
        ("jacobi_decoding", {"window": 16}),
    ],
    ids=["n-gram", "one token", "draft", "long draft", "jacobi", "wide jacobi"],
)
def test_guesses_that_are_checked_change_no_token(
    examples: Examples, name: str, options: dict[str, Any], prompt: str
) -> None:
    max_tokens = 50  # no multiple of what a step may bring
    run = examples.run(
        name,
        models=("pie-tiny", "draft"),
        prompt=prompt,
        max_tokens=max_tokens,
        **options,
    )
    assert run.text == examples.greedy(prompt, max_tokens)
    assert run.use.steps == run.result["steps"]


@pytest.mark.parametrize(
    ("name", "prompt", "most"),
    [
        ("speculative_decoding", COPY, 0.4),
        ("draft_model_speculation", STORY, 0.4),
        ("draft_model_speculation", COPY, 0.4),
        ("jacobi_decoding", STORY, 0.9),
    ],
)
def test_guesses_save_steps(
    examples: Examples, name: str, prompt: str, most: float
) -> None:
    run = examples.run(name, models=("pie-tiny", "draft"), prompt=prompt)
    assert run.use.steps <= most * run.result["tokens"]


def test_without_guesses_every_token_takes_a_step(examples: Examples) -> None:
    run = examples.run("speculative_decoding", prompt=STORY, num_drafted=0)
    assert run.use.steps == run.result["tokens"] == 64


def test_a_cached_prefix_is_computed_once(examples: Examples) -> None:
    questions = ["Where does Ben live?", "What does Mila keep?"]
    first, second, again = examples.run_each(
        "prefix_caching", [{"question": q} for q in [*questions, questions[0]]]
    )
    start = f"<|im_start|>user\nNotes:\n{NOTES}\nQuestion: "
    for question, run in zip(questions, (first, second), strict=True):
        prompt = f"{start}{question}<|im_end|>\n<|im_start|>assistant\n"
        assert run.text == examples.greedy(prompt, 32)
    assert again.text == first.text
    num_prefix = first.use.tokens - again.use.tokens
    assert num_prefix > 30
    assert again.use.tokens < num_prefix


def test_prompts_that_begin_alike_are_computed_once(examples: Examples) -> None:
    together = examples.run("prefix_tree", max_tokens=8)
    alone = [examples.run("prefix_tree", prompts=[p], max_tokens=8) for p in PROMPTS]
    assert together.result == [run.result[0] for run in alone]
    assert together.result == [examples.greedy(p, 8) for p in PROMPTS]
    assert together.use.tokens < 0.6 * sum(run.use.tokens for run in alone)


def test_prompts_that_are_others_beginnings_or_equal_are_answered(
    examples: Examples,
) -> None:
    prompts = ["Once upon", "Once upon a time", "Once upon", "The old dog"]
    run = examples.run("prefix_tree", prompts=prompts, max_tokens=6)
    assert run.result == [examples.greedy(prompt, 6) for prompt in prompts]


REFERENCE = """
from inferlet_py import *

@inferlet
async def main(prompt: str, max_tokens: int, window: int) -> str:
    with Queue() as queue:
        tokens = queue.model.tokenize(prompt, special=True)
        start = len(tokens)
        for _ in range(max_tokens):
            n = len(tokens)
            pages = queue.alloc_kvpages(-(-n // queue.kv_page_size))
            mask = [[i - window < j <= i for j in range(n)] for i in range(n)]
            (out,) = await queue.forward_text(
                tokens, pages=pages, mask=mask, outputs=[Output(sampler=Greedy())]
            )
            tokens += out.tokens
        return queue.model.detokenize(tokens[start:])
"""


@pytest.mark.parametrize("window", [16, 23, 40])
def test_a_window_over_few_pages_says_what_one_over_all_of_them_does(
    examples: Examples, tmp_path: Path, window: int
) -> None:
    prompt = f"{STORY}, there was a curious child named Ivan. Ivan had a yellow cup."
    (tmp_path / "app.py").write_text(REFERENCE)
    options: dict[str, Any] = {"prompt": prompt, "max_tokens": 40, "window": window}
    run = examples.run("windowed_attention", **options)
    assert run.text == examples.run(str(tmp_path), **options).result
    assert run.text != examples.greedy(prompt, 40)


def test_a_window_over_everything_is_no_window(examples: Examples) -> None:
    run = examples.run("windowed_attention", prompt=STORY, max_tokens=40, window=60)
    assert run.text == examples.greedy(STORY, 40)
