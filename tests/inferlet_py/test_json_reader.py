"""JSON in pieces is JSON, and grows towards it."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inferlet_py import JsonReader, WrongJsonError

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
LAYOUTS = st.sampled_from(
    [{}, {"indent": 1}, {"ensure_ascii": False}, {"separators": (",", ":")}]
)


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    """Return a text cut at some places."""
    places = [0, *sorted({cut % (len(text) + 1) for cut in cuts}), len(text)]
    return [text[start:end] for start, end in pairwise(places)]


def read(pieces: list[str]) -> Any:
    reader = JsonReader()
    for piece in pieces:
        reader.feed(piece)
    return reader.finish()


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def is_beginning(part: Any, whole: Any) -> bool:
    """Whether a value may grow to another one."""
    if isinstance(part, str) and isinstance(whole, str):
        return whole.startswith(part)
    if isinstance(part, list) and isinstance(whole, list):
        pairs = list(zip(part, whole, strict=False))
        settled = all(a == b for a, b in pairs[:-1])
        return (
            len(part) <= len(whole)
            and settled
            and all(is_beginning(a, b) for a, b in pairs)
        )
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(
            key in whole and is_beginning(value, whole[key])
            for key, value in part.items()
        )
    return bool(part == whole and type(part) is type(whole))


@given(VALUES, LAYOUTS, st.lists(st.integers(0, 10_000), max_size=8))
@example("\U0001f600 \ud83d \ud83d\U0001f600", {}, list(range(60)))
@example([1, 20, {"a": 0.5}], {}, list(range(60)))
def test_whatever_the_pieces_the_value_is_that_of_json(
    value: Any, layout: dict[str, Any], cuts: list[int]
) -> None:
    text = json.dumps(value, **layout)
    assert read(pieces_of(text, cuts)) == json.loads(text)
    found = read(list(text))
    assert repr(found) == repr(json.loads(text))


@given(VALUES, LAYOUTS)
def test_what_is_known_so_far_is_a_beginning_of_the_whole(
    value: Any, layout: dict[str, Any]
) -> None:
    reader = JsonReader()
    for character in json.dumps(value, **layout):
        known = reader.feed(character)
        assert known is None or is_beginning(known, value)
    assert reader.finish() == value


@given(st.text(alphabet=' {}[]:,"\\/0123456789.-+eEtrufalsn\n\tudD8ceC', max_size=14))
@example("-")
@example('"\\ud83d\\ude0')
@example("01")
@example("1.")
@example('{"a":1,}')
@example("[1,]")
@example("nul")
@example("\u0661")
def test_a_text_is_taken_exactly_where_json_takes_it(text: str) -> None:
    try:
        expected = json.loads(text, strict=False, parse_constant=refuse_constant)
    except ValueError:
        with pytest.raises(WrongJsonError):
            read(list(text))
        with pytest.raises(WrongJsonError):
            read([text])
    else:
        assert repr(read(list(text))) == repr(read([text])) == repr(expected)


def test_a_number_with_too_many_digits_is_refused() -> None:
    with pytest.raises(WrongJsonError, match="a shorter number"):
        read(["[" + "1" * 5000, "]"])


def test_values_grow_as_they_come() -> None:
    reader = JsonReader()
    steps = [
        ('{"na', {}),
        ('me": "An', {"name": "An"}),
        ('na", "ages": [1', {"name": "Anna", "ages": []}),
        ("2, 3", {"name": "Anna", "ages": [12]}),
        ("], ", {"name": "Anna", "ages": [12, 3]}),
        ('"ok": tr', {"name": "Anna", "ages": [12, 3]}),
        ("ue", {"name": "Anna", "ages": [12, 3], "ok": True}),
    ]
    for piece, known in steps:
        assert reader.feed(piece) == known
        assert not reader.is_complete
    reader.feed("}\n")
    assert reader.is_complete


@pytest.mark.parametrize(
    ("pieces", "message", "position"),
    [
        (['{"a"', " 1}"], "expected : at character 5, got '1}'", 5),
        (["[1, 2", " 3]"], r"expected , or \] at character 6, got '3\]'", 6),
        (["[tr", "ap]"], "expected a value.* at character 1, got 'tra'", 1),
        (['["\\', 'x"]'], r"expected an escape of JSON at character 2, got '\\\\x'", 2),
        (["[-", "]"], r"expected a number at character 1, got '-\]'", 1),
        (['{"a": "b'], "expected the rest of a string at character 8, got the end", 8),
        (["[1, "], "expected a value at character 4, got the end", 4),
        (["{} {"], "expected the end at character 3, got '{'", 3),
    ],
)
def test_an_error_says_what_was_expected_and_where(
    pieces: list[str], message: str, position: int
) -> None:
    with pytest.raises(WrongJsonError, match=message) as caught:
        read(pieces)
    assert caught.value.position == position
