"""Techniques of the examples, and what is asked of another server for the same."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, cast

import pytest

from benchmarks._standard import STANDARD, Texts
from benchmarks.serving import EXAMPLES

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WORDS = [f"word{letter}" for letter in "abcdefgh"]


class FakeTokenizer:
    """Knows a few words, and what is none."""

    def get_vocab(self) -> dict[str, int]:
        tokens = [*(f"Ġ{word[4:] * 4}" for word in WORDS), "Ġab", "abcd", "Ġx1yz"]
        return {token: number for number, token in enumerate(tokens)}


def make_texts() -> Texts:
    return Texts(cast("Tokenizer", FakeTokenizer()))


def test_texts_are_of_words_that_stand_alone() -> None:
    texts = make_texts()
    words = set(f"{texts.shared} {texts.next(50)}".split())
    assert words == {word[4:] * 4 for word in WORDS}
    assert texts.next(20) != texts.next(20)


@pytest.mark.parametrize("name", STANDARD)
def test_an_example_takes_what_it_is_given(name: str) -> None:
    standard = STANDARD[name]
    run = standard.make(make_texts(), 16)
    tree = ast.parse((EXAMPLES / standard.example / "app.py").read_text())
    (main,) = (
        node
        for node in tree.body
        if isinstance(node, ast.AsyncFunctionDef) and node.name == "main"
    )
    known = {argument.arg for argument in main.args.args}
    assert set(run.arguments) <= known


@pytest.mark.parametrize(
    "name", ["completion", "speculation", "beam search", "attention sink", "window"]
)
def test_a_client_asks_for_the_same_prompt_and_as_many_tokens(name: str) -> None:
    run = STANDARD[name].make(make_texts(), 16)
    (request,) = run.requests
    assert run.arguments["prompt"] == request.prompt
    assert run.arguments["max_tokens"] == request.num_tokens


def test_notes_are_shared_and_questions_are_not() -> None:
    texts = make_texts()
    (first,), (second,) = (
        STANDARD["prefix caching"].make(texts, 16).requests for _ in "12"
    )
    start = f"<|im_start|>user\nNotes:\n{texts.shared}\nQuestion: "
    assert first.prompt.startswith(start)
    assert second.prompt.startswith(start)
    assert first.prompt != second.prompt


def test_a_prefix_tree_has_a_prompt_for_each_leaf_and_shares_beginnings() -> None:
    run = STANDARD["prefix tree"].make(make_texts(), 16)
    prompts = [request.prompt.split() for request in run.requests]
    assert list(run.arguments["prompts"]) == [" ".join(prompt) for prompt in prompts]
    assert len(prompts) == 8
    assert len({tuple(prompt) for prompt in prompts}) == 8
    assert len({tuple(prompt[:16]) for prompt in prompts}) == 1
    assert len({tuple(prompt[:32]) for prompt in prompts}) == 2
