"""Retrieval in the program: the right passages, each computed once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pytest

from examples.rag.app import DOCUMENTS, rank

if TYPE_CHECKING:
    from pie_trio.application.authoring.testing.pie import Pie
    from tests.examples.running import Examples

QUESTIONS = {
    "What is the code of Tom?": "The code of Tom is 7350.",
    "Where does Zoe live?": "Zoe lives in Oslo.",
    "What does Emma keep?": "Emma keeps the green boat.",
    "Where does Ruby live?": "Ruby lives in Madrid.",
}


@pytest.mark.parametrize("keep", [1, 3, len(DOCUMENTS)])
def test_the_answer_is_right_with_few_passages_or_with_all(
    examples: Examples, keep: int
) -> None:
    runs = examples.run_each("rag", [{"question": q, "keep": keep} for q in QUESTIONS])
    assert [run.result["answer"] for run in runs] == list(QUESTIONS.values())
    for run, answer in zip(runs, QUESTIONS.values(), strict=True):
        assert answer in run.result["passages"]
        assert len(run.result["passages"]) == keep


def test_without_its_passage_a_question_is_not_answered(examples: Examples) -> None:
    others = [text for text in DOCUMENTS if "Zoe" not in text]
    run = examples.run("rag", documents=others)
    assert run.result["answer"] != "Zoe lives in Oslo."


def test_a_passage_is_computed_once_whoever_finds_it(examples: Examples) -> None:
    anna = {"question": "What is the code of Anna?"}
    tom = {"question": "What is the code of Tom?"}
    first, again, other = examples.run_each("rag", [anna, anna, tom])
    assert first.result == again.result
    # The same three passages, beside the same beginning: the question alone is new.
    assert set(other.result["passages"]) == set(first.result["passages"])
    assert abs(other.use.tokens - again.use.tokens) <= 2
    num_passages = first.use.tokens - again.use.tokens
    assert num_passages > 3 * 10
    # As many tokens as go through the model where nothing is shared.
    assert examples.run("rag", **anna).use.tokens == again.use.tokens + num_passages


def test_it_answers_in_both_modes(tiny: Pie, mode: Literal["wasm", "native"]) -> None:
    run = tiny.run_sync("rag", question="What does Leo keep?", mode=mode)
    assert run.result["answer"] == "Leo keeps the blue drum."


def test_rare_words_count_more_than_common_ones_and_short_texts_more_than_long() -> (
    None
):
    texts = ["the the the owl sat", "the the the the the", "an owl", "nothing of it"]
    assert rank("the owl", texts)[0] == 0
    assert rank("owl", texts)[:2] == [2, 0]
    assert rank("Owl?", texts) == rank("owl", texts)
