from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pie_trio.errors import ConfigError, GrammarError
from pie_trio.inference.grammar import (
    Grammar,
    GrammarKind,
    GrammarVocabulary,
    Matcher,
    compile_grammar,
    fill_masks,
)
from pie_trio.inference.grammar import matcher as matcher_module
from tests.inference.grammar.walks import (
    BYTE_TOKENS,
    END,
    SPECIAL,
    accepts,
    allowed_tokens,
    token_ids,
    walk,
)

if TYPE_CHECKING:
    from collections.abc import Callable

# Each of them goes on for a while, and may end in several places.
GRAMMARS: list[tuple[GrammarKind, str]] = [
    ("regex", "(ab|abc|[ab]{2}c?)*(12?)?"),
    ("gbnf", 'root ::= "a" root "b" | [ab]* "c" | "é"+'),
    ("lark", 'start: item ("," item)*\nitem: /[a-c]+/ | "[" start "]"'),
    ("json-schema", '{"type": "object", "additionalProperties": {"type": "integer"}}'),
]


@pytest.fixture(scope="module")
def grammars(byte_vocabulary: GrammarVocabulary) -> list[Grammar]:
    return [compile_grammar(kind, text, byte_vocabulary) for kind, text in GRAMMARS]


def state(matcher: Matcher) -> tuple[list[int], bool, bool, int]:
    """Return what can be seen of a matcher."""
    return (
        allowed_tokens(matcher),
        matcher.is_accepting,
        matcher.is_finished,
        matcher.num_accepted,
    )


def fresh(grammar: Grammar, tokens: list[int]) -> Matcher:
    matcher = grammar.matcher()
    assert matcher.accept(tokens) == len(tokens)
    return matcher


@given(
    index=st.integers(0, len(GRAMMARS) - 1),
    rng=st.randoms(use_true_random=False),
    steps=st.lists(
        st.sampled_from(["accept", "refuse", "back", "fork", "end"]), max_size=25
    ),
)
def test_a_matcher_is_what_its_tokens_make_it(
    grammars: list[Grammar], index: int, rng: random.Random, steps: list[str]
) -> None:
    grammar = grammars[index]
    matcher, tokens = grammar.matcher(), list[int]()
    others: list[tuple[Matcher, list[int]]] = []
    for step in steps:
        allowed = allowed_tokens(matcher)
        if step == "fork":
            others.append((matcher.fork(), list(tokens)))
        elif step == "back":
            count = rng.randint(0, len(tokens))
            matcher.rollback(count)
            tokens = tokens[: len(tokens) - count]
        elif step == "refuse":
            wrong = rng.choice([t for t in range(len(BYTE_TOKENS)) if t not in allowed])
            good = [rng.choice(allowed)]
            assert matcher.accept([wrong, *good]) == 0
        elif step == "end" and END in allowed:
            assert matcher.accept([END]) == 1
            tokens.append(END)
        elif step == "accept":
            token = rng.choice(allowed)
            assert matcher.accept([token]) == 1
            tokens.append(token)
        assert state(matcher) == state(fresh(grammar, tokens))
    for other, its_tokens in others:
        assert state(other) == state(fresh(grammar, its_tokens))


@given(index=st.integers(0, len(GRAMMARS) - 1), seed=st.integers(0, 50))
def test_accept_stops_before_the_first_token_that_is_not_allowed(
    grammars: list[Grammar], index: int, seed: int
) -> None:
    grammar, rng = grammars[index], random.Random(seed)
    tokens = walk(grammar, rng, eager_after=10)
    assert tokens is not None
    cut = rng.randint(0, len(tokens))
    good = tokens[:cut]
    allowed = allowed_tokens(fresh(grammar, good))
    bad = rng.choice([t for t in range(len(BYTE_TOKENS)) if t not in allowed])
    matcher = grammar.matcher()
    assert matcher.accept([*good, bad, *good]) == cut
    assert state(matcher) == state(fresh(grammar, good))


# The words that a text can begin with are those of the languages below; all are finite.
WORDS = {
    "regex": ["a", "ab", "abc", "ba12", "aaaa", "é", "bab"],
    "gbnf": ["a", "aab", "abcba", "é12", "ba"],
}


@pytest.mark.parametrize("kind", ["regex", "gbnf"])
def test_a_mask_has_exactly_the_tokens_that_leave_a_way_to_the_end(
    byte_vocabulary: GrammarVocabulary, kind: GrammarKind
) -> None:
    words = WORDS[kind]
    text = "|".join(words) if kind == "regex" else f"root ::= {_quoted(words)}"
    grammar = compile_grammar(kind, text, byte_vocabulary)
    language = [word.encode() for word in words]
    waiting, seen = [grammar.matcher()], {b""}
    prefixes = [b""]
    while waiting:
        matcher, prefix = waiting.pop(), prefixes.pop()
        expected = {
            token
            for token, spelled in enumerate(BYTE_TOKENS)
            if spelled and any(word.startswith(prefix + spelled) for word in language)
        }
        if prefix in language:
            expected |= {END, END + 1}
        assert set(allowed_tokens(matcher)) == expected, prefix
        assert matcher.is_accepting == (prefix in language)
        assert matcher.is_finished == (expected == {END, END + 1})
        for token in expected - {END, END + 1}:
            longer = prefix + BYTE_TOKENS[token]
            if longer not in seen:
                seen.add(longer)
                waiting.append(fresh_from(matcher, token))
                prefixes.append(longer)
    assert len(seen) > 10


def _quoted(words: list[str]) -> str:
    return " | ".join(f'"{word}"' for word in words)


def fresh_from(matcher: Matcher, token: int) -> Matcher:
    twin = matcher.fork()
    assert twin.accept([token]) == 1
    return twin


def test_end_tokens_may_follow_an_end_and_nothing_else_may(
    byte_vocabulary: GrammarVocabulary,
) -> None:
    matcher = compile_grammar("regex", "a*", byte_vocabulary).matcher()
    assert matcher.accept([END, ord("a")]) == 1
    assert (matcher.is_finished, matcher.has_ended) == (True, True)
    assert allowed_tokens(matcher) == [END, END + 1]
    assert matcher.accept([END + 1]) == 1
    matcher.rollback(2)
    assert not matcher.is_finished
    assert matcher.accept([ord("a"), END]) == 2


def test_an_empty_output_is_finished_at_once(
    byte_vocabulary: GrammarVocabulary,
) -> None:
    matcher = compile_grammar("regex", "", byte_vocabulary).matcher()
    assert allowed_tokens(matcher) == [END, END + 1]
    assert matcher.is_accepting
    assert matcher.is_finished


@pytest.mark.parametrize("count", [-1, 3])
def test_no_more_can_be_taken_back_than_was_accepted(
    byte_vocabulary: GrammarVocabulary, count: int
) -> None:
    matcher = compile_grammar("regex", "a*", byte_vocabulary).matcher()
    matcher.accept([ord("a"), ord("a")])
    with pytest.raises(ValueError, match="0 to 2"):
        matcher.rollback(count)


@pytest.mark.parametrize("token", [-1, SPECIAL, len(BYTE_TOKENS), 10**9])
def test_what_is_no_token_of_text_is_not_accepted(
    byte_vocabulary: GrammarVocabulary, token: int
) -> None:
    matcher = compile_grammar("regex", "(?s:.*)", byte_vocabulary).matcher()
    assert matcher.accept([ord("a"), token]) == 1
    assert matcher.accept([ord("b")]) == 1


@given(seed=st.integers(0, 1000), size=st.integers(0, 9))
@settings(max_examples=30)
def test_masks_filled_together_are_those_filled_one_by_one(
    grammars: list[Grammar], seed: int, size: int
) -> None:
    rng = random.Random(seed)
    matchers: list[Matcher] = []
    for _ in range(size):
        matcher = rng.choice([*matchers, *(g.matcher() for g in grammars)])
        for _ in range(rng.randint(0, 4)):
            matcher.accept([rng.choice(allowed_tokens(matcher))])
        matchers.append(matcher)
    words = grammars[0].vocabulary.num_mask_words
    together = np.full((size, words), 0xFFFFFFFF, np.uint32)
    fill_masks(matchers, together)
    alone = [allowed_tokens(matcher) for matcher in matchers]
    assert [token_ids(row) for row in together] == alone


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((1, 8), np.uint32),
        np.zeros((2, 9), np.uint32),
        np.zeros((1, 9), np.int32),
        np.zeros((1, 18), np.uint32)[:, ::2],
    ],
    ids=["short", "rows", "dtype", "strides"],
)
def test_a_mask_of_another_shape_is_refused(
    byte_vocabulary: GrammarVocabulary,
    out: np.ndarray[tuple[int, int], np.dtype[np.uint32]],
) -> None:
    matcher = compile_grammar("regex", "a", byte_vocabulary).matcher()
    with pytest.raises(ValueError, match="expected contiguous uint32 masks"):
        fill_masks([matcher], out)


def test_a_token_that_takes_too_long_is_the_last_of_its_matcher_alone(
    byte_vocabulary: GrammarVocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    hard = compile_grammar(
        "lark", "start: s\ns: s s | /a/ |", byte_vocabulary
    ).matcher()
    easy = compile_grammar("regex", "[xy]", byte_vocabulary).matcher()
    monkeypatch.setattr(matcher_module, "MAX_STEP_SECONDS", 0.0)
    with pytest.raises(GrammarError, match="make the grammar less ambiguous"):
        hard.accept([ord("a")])
    out = np.zeros((3, byte_vocabulary.num_mask_words), np.uint32)
    with pytest.raises(GrammarError) as raised:
        fill_masks([easy, hard.fork(), easy], out)
    assert raised.value.rows == (1,)
    assert token_ids(out[0]) == token_ids(out[2]) == [ord("x"), ord("y")]


def test_special_tokens_are_never_allowed(
    shared_vocabulary: Callable[[str], GrammarVocabulary],
) -> None:
    vocabulary = shared_vocabulary("qwen3")
    grammar = compile_grammar("regex", "(?s:.*)", vocabulary)
    allowed = set(allowed_tokens(grammar.matcher()))
    special = set(range(151643, 151657))
    assert allowed & special == {151643, 151645}
    assert grammar.matcher().accept([151644]) == 0
    # <think> and </think> are ordinary text that is one token.
    assert {151667, 151668} <= allowed
    # Ids past the tokenizer's, which the model has for padding.
    assert not allowed & set(range(151669, 151936))


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_a_text_is_accepted_as_its_tokenizer_spells_it(
    name: str,
    shared_vocabulary: Callable[[str], GrammarVocabulary],
    shared_directory: object,
) -> None:
    from pathlib import Path

    from tokenizers import Tokenizer

    assert isinstance(shared_directory, Path)
    path = shared_directory / "tokenizers" / name / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    vocabulary = shared_vocabulary(name)
    schema = '{"type": "object", "properties": {"naïve": {"enum": ["Über 😀", 12.5]}}}'
    grammar = compile_grammar("json-schema", schema, vocabulary)
    for text in ('{"naïve": "Über 😀"}', '{ "naïve" : 12.5, "x": [true, {}] }'):
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
        matcher = grammar.matcher()
        assert matcher.accept(tokens) == len(tokens)
        assert matcher.is_finished


def test_the_vocabulary_of_the_default_model_follows_a_regex(
    pie_tiny_vocabulary: GrammarVocabulary,
) -> None:
    grammar = compile_grammar("regex", "[a-z]{3,20}( [0-9]+)?", pie_tiny_vocabulary)
    for seed in range(10):
        tokens = walk(grammar, random.Random(seed), eager_after=15)
        assert tokens is not None
        text = b"".join(pie_tiny_vocabulary.tokens[t] for t in tokens).decode()
        assert re.fullmatch("[a-z]{3,20}( [0-9]+)?", text)


@pytest.mark.parametrize("ends", [[], [-1], [3]])
def test_a_vocabulary_needs_an_end_token_of_its_own(ends: list[int]) -> None:
    with pytest.raises(ConfigError, match="eos_token_id"):
        GrammarVocabulary([b"a", b"b", b""], eos_token_ids=ends)


def test_a_machine_without_llguidance_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(ConfigError, match="pip install llguidance"):
        GrammarVocabulary([b"a", b""], eos_token_ids=[1])


def test_texts_are_accepted_whatever_the_tokens(grammars: list[Grammar]) -> None:
    assert accepts(grammars[3], '{"a": 1, "b": -2}')
    assert not accepts(grammars[3], '{"a": 1.5}')
