"""Techniques that decide what stays in the KV cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.examples.running import Examples


@pytest.mark.parametrize(
    "max_tokens", [500, pytest.param(2000, marks=pytest.mark.slow)]
)
def test_an_attention_sink_takes_the_same_pages_however_long_the_text(
    examples: Examples, max_tokens: int
) -> None:
    runs = [
        examples.run("attention_sink", max_tokens=n, sink_pages=1, window_pages=5)
        for n in (150, max_tokens)
    ]
    assert [run.use.peak_pages for run in runs] == [6, 6]
    assert runs[1].text.startswith(runs[0].text)
    assert runs[1].use.forwards == max_tokens


def test_before_anything_is_dropped_an_attention_sink_changes_nothing(
    examples: Examples,
) -> None:
    run = examples.run("attention_sink", max_tokens=60, window_pages=3, temperature=0.0)
    assert run.text == examples.greedy("Once upon a time", 60)


def test_a_window_takes_the_same_pages_however_long_the_text(
    examples: Examples,
) -> None:
    long = "The red kite flew. " * 40
    run = examples.run("windowed_attention", prompt=long, max_tokens=100, window=32)
    assert run.result["pages"] <= 4


def test_modules_are_computed_once_and_combine(examples: Examples) -> None:
    homes = {"question": "Where does Ben live?", "modules": ["start", "homes"]}
    codes = {
        "question": "What is the code of Tom?",
        "modules": ["start", "codes", "homes"],
    }
    first, other, again = examples.run_each("modular_caching", [homes, codes, homes])
    assert first.text == again.text == "Ben lives in Rome."
    assert other.text == "The code of Tom is 7350."
    alone = examples.run("modular_caching", **codes)
    assert alone.text == other.text
    assert again.use.tokens < first.use.tokens
    assert other.use.tokens < alone.use.tokens


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What does Mila keep?", "Mila keeps the red kite."),
        ("What is the code of Tom?", "The code of Tom is 7350."),
        ("Where does Zoe live?", "Zoe lives in Oslo."),
        ("What does Leo keep?", "Leo keeps the blue drum."),
    ],
)
def test_a_quarter_of_the_notes_is_enough_if_it_is_the_right_one(
    examples: Examples, question: str, answer: str
) -> None:
    run = examples.run("hierarchical_attention", question=question, keep=2)
    assert run.text == answer


def test_texts_are_given_up_when_memory_is_short_and_the_same_one_wins(
    examples: Examples,
) -> None:
    short = examples.run("memory_aware", models=("small",))
    assert short.result["given_up"] > 0
    assert short.use.peak_pages <= 24
    ample = examples.run("memory_aware")
    assert ample.result["given_up"] == 0
    assert ample.use.peak_pages > 24
    assert short.result["text"] == ample.result["text"]
