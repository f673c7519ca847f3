"""The signature of a program: schema, conversion, errors that name the argument."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlet_py import (
    SignatureError,
    WrongArgumentError,
    WrongResultError,
    inferlet,
    schema_of,
)
from inferlet_py._signature import Signature

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


async def everything(
    text: str,
    count: int,
    heat: float = 0.5,
    *,
    loud: bool = False,
    kind: Literal["a", "b", 3] = "a",
    maybe: Optional[int] = None,  # noqa: UP045 - authors write it
    words: list[str] | None = None,
    table: dict[str, float] | None = None,
    anything: Any = None,
) -> None:
    """Do everything.

    And explain it.

    Args:
        text: What to do,
            on two lines.
        count: How often.

    Returns:
        Nothing.
    """


def test_the_schema_has_types_defaults_and_descriptions() -> None:
    schema = Signature(everything).schema()
    assert schema["required"] == ["text", "count"]
    assert schema["properties"]["text"] == {
        "type": "string",
        "description": "What to do, on two lines.",
    }
    assert schema["properties"]["heat"] == {"type": "number", "default": 0.5}
    assert schema["properties"]["kind"] == {"enum": ["a", "b", 3], "default": "a"}
    assert schema["properties"]["maybe"]["anyOf"] == [
        {"type": "integer"},
        {"type": "null"},
    ]
    assert Signature(everything).documentation() == "Do everything.\n\nAnd explain it."


def test_arguments_are_converted_to_what_the_types_say() -> None:
    given = {
        "text": "x",
        "count": 2,
        "heat": 1,
        "loud": True,
        "kind": 3,
        "maybe": None,
        "words": ["a"],
        "table": {"k": 2},
        "anything": [None],
    }
    converted = Signature(everything).convert(given)
    assert converted == given
    assert type(converted["heat"]) is float
    assert type(converted["table"]["k"]) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": 1}, "argument 'text': expected str, got 1 (int)"),
        ({"count": True}, "argument 'count': expected int, got true (bool)"),
        ({"count": 1.0}, "argument 'count': expected int, got 1.0 (float)"),
        ({"heat": "hot"}, "argument 'heat': expected float, got \"hot\" (str)"),
        ({"kind": "c"}, "argument 'kind': expected one of 'a', 'b', 3, got \"c\""),
        ({"maybe": "x"}, "argument 'maybe': expected int or None"),
        ({"words": 1}, "argument 'words': expected list of str or None, got 1 (int)"),
        ({"words": [1]}, "argument 'words': expected list of str or None"),
        ({"table": {"k": "v"}}, "argument 'table' at .k: expected float"),
        ({"text": "x" * 100, "count": "y" * 100}, "argument 'count'"),
        ({"texd": "x"}, "there is no argument 'texd': it takes text, count"),
    ],
)
def test_a_wrong_argument_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(WrongArgumentError) as error:
        Signature(everything).convert({"text": "x", "count": 1, **change})
    assert message in str(error.value)


def test_a_missing_argument_is_named() -> None:
    with pytest.raises(WrongArgumentError, match="argument 'count' is missing"):
        Signature(everything).convert({"text": "x"})


async def warm(heat: float = 1, *, count: int = 1, maybe: float | None = 1) -> None: ...


def test_a_float_parameter_has_a_float_by_default_too() -> None:
    converted = Signature(warm).convert({})
    assert converted == {"heat": 1.0}
    assert type(converted["heat"]) is float
    assert Signature(warm).convert({"heat": 2}) == {"heat": 2.0}
    default = Signature(warm).schema()["properties"]["heat"]["default"]
    assert type(default) is float


def test_a_function_that_is_not_asynchronous_is_refused() -> None:
    def ordinary() -> None: ...

    async def stream() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(SignatureError, match="write `async def ordinary`"):
        inferlet(ordinary)  # type: ignore[arg-type]
    with pytest.raises(SignatureError, match="stream has a `yield`"):
        inferlet(stream)  # type: ignore[arg-type]


async def nothing() -> None: ...


def test_a_function_without_parameters_takes_nothing() -> None:
    assert Signature(nothing).convert({}) == {}
    with pytest.raises(WrongArgumentError, match="it takes none"):
        Signature(nothing).convert({"x": 1})


async def result_of_int() -> list[int]:
    return []


async def result_of_pair() -> tuple[str, int] | None:
    return None


async def result_of_nothing() -> None: ...


async def result_of_anything(): ...  # type: ignore[no-untyped-def]  # noqa: ANN201


@pytest.mark.parametrize(
    ("function", "good", "bad", "message"),
    [
        (result_of_int, [1], [1, "x"], "the program's result[1]: expected int"),
        (result_of_pair, ("a", 1), ("a",), "expected list of 2 (str, int) or None"),
        (
            result_of_nothing,
            None,
            1,
            "the program's result: expected None, got 1 (int)",
        ),
    ],
)
def test_a_result_is_what_the_signature_says(
    function: Callable[..., Any], good: object, bad: object, message: str
) -> None:
    signature = Signature(function)
    signature.check_result(good)
    with pytest.raises(WrongResultError) as error:
        signature.check_result(bad)
    assert message in str(error.value)


def test_a_result_without_a_type_may_be_anything() -> None:
    signature = Signature(result_of_anything)
    signature.check_result({"a": [1]})
    assert signature.result_schema() == {}


async def hinted(x: "Callable[..., Any]") -> None: ...  # noqa: UP037


def test_a_type_for_type_checkers_alone_is_refused_with_the_way_out() -> None:
    with pytest.raises(SignatureError, match="Callable is not known when the program"):
        Signature(hinted)


_NO_JSON = object()


@inferlet
async def described(words: tuple[str, ...] = ("a",)) -> dict[str, float]:
    """Count."""
    return dict.fromkeys(words, 1.0)


def test_the_schema_of_a_program_has_arguments_and_result() -> None:
    assert schema_of(described) == {
        "name": "described",
        "documentation": "Count.",
        "arguments": {
            "type": "object",
            "properties": {
                "words": {
                    "type": "array",
                    "items": {"type": "string"},
                    "default": ["a"],
                }
            },
            "required": [],
            "additionalProperties": False,
        },
        "result": {"type": "object", "additionalProperties": {"type": "number"}},
    }


async def untyped(x) -> None: ...  # type: ignore[no-untyped-def]  # noqa: ANN001
async def variadic(*args: int) -> None: ...
async def keywords(**kwargs: int) -> None: ...
async def foreign(x: set[int]) -> None: ...
async def keyed(x: dict[int, str]) -> None: ...
async def positional(x: int, /) -> None: ...
async def unsendable(x: Any = _NO_JSON) -> None: ...


@pytest.mark.parametrize(
    "function", [untyped, variadic, keywords, foreign, keyed, positional, unsendable]
)
def test_a_signature_that_no_client_could_call_is_refused(
    function: Callable[..., Any],
) -> None:
    with pytest.raises(SignatureError, match=r"parameter"):
        Signature(function).schema()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["text", "count", "words", "kind", "x"]), JSON))
def test_whatever_comes_is_converted_or_refused(arguments: dict[str, Any]) -> None:
    try:
        Signature(everything).convert(arguments)
    except WrongArgumentError as error:
        assert "argument" in str(error)
