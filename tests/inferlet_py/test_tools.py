"""Tools of Python functions: schema, arguments, results."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from inferlet_py import SignatureError, Tool, ToolCall, run_tools, tool
from tests.inferlet_py.scripted_host import ScriptedHost, run


@dataclass
class Place:
    """Where something is.

    Attributes:
        city: Its city.
    """

    city: str
    country: str = "?"


class Unit(enum.Enum):
    METRIC = "metric"
    IMPERIAL = "imperial"


@tool
def convert(value: float, from_: str, to: str = "m") -> str:
    """Change the unit of a value."""
    return f"{value} {from_} in {to}"


def call(name: str, **arguments: Any) -> ToolCall:
    return ToolCall(name, arguments)


def results_of(*calls: ToolCall, tools: Any = (convert,)) -> list[str]:
    async def program() -> list[str]:
        return [result.text for result in await run_tools(calls, tools)]

    found: list[str] = run(ScriptedHost(), program)
    return found


def test_the_schema_comes_from_signature_and_docstring() -> None:
    @tool
    async def report(
        place: Place,
        unit: Unit = Unit.METRIC,
        detail: Literal["low", "high"] = "low",
    ) -> None:
        """Tell the weather.

        Of today.

        Args:
            place: Where.
            detail: How much.
        """

    assert report.spec() == {
        "type": "function",
        "function": {
            "name": "report",
            "description": "Tell the weather.\n\nOf today.",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {
                        "type": "object",
                        "properties": {
                            "city": {"type": "string", "description": "Its city."},
                            "country": {"type": "string"},
                        },
                        "required": ["city"],
                        "additionalProperties": False,
                        "description": "Where.",
                    },
                    "unit": {"enum": ["metric", "imperial"], "default": "metric"},
                    "detail": {
                        "enum": ["low", "high"],
                        "default": "low",
                        "description": "How much.",
                    },
                },
                "required": ["place"],
                "additionalProperties": False,
            },
        },
    }


def test_a_word_of_pythons_grammar_is_written_with_an_underscore() -> None:
    assert list(convert.parameters["properties"]) == ["value", "from", "to"]
    assert convert.parameters["required"] == ["value", "from"]
    arguments = {"value": 2, "from": "km"}
    assert results_of(ToolCall("convert", arguments)) == ["2.0 km in m"]


def test_a_tool_is_still_its_function() -> None:
    assert convert(1.0, "km", to="cm") == "1.0 km in cm"
    assert (convert.name, convert.__doc__) == ("convert", "Change the unit of a value.")


def test_results_are_text_or_json() -> None:
    @tool
    def give(kind: str) -> Any:
        """Give."""
        values = {"text": "as it is", "none": None, "place": [Place("é")], "set": {1}}
        return values[kind]

    kinds = ("text", "none", "place", "set", "unknown")
    assert results_of(*(call("give", kind=k) for k in kinds), tools=[give]) == [
        "as it is",
        "null",
        '[{"city": "é", "country": "?"}]',
        '"{1}"',
        '{"error": "\'unknown\'"}',
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "argument 'value' is missing"),
        ({"value": 1, "from": "km", "x": 1}, "there is no argument 'x'"),
        ({"value": "1", "from": "km"}, "argument 'value': expected float, got"),
    ],
)
def test_arguments_that_do_not_fit_are_told(
    arguments: dict[str, Any], message: str
) -> None:
    (text,) = results_of(ToolCall("convert", arguments))
    assert message in text


def test_a_place_inside_of_an_argument_is_named() -> None:
    @tool
    def visit(places: list[Place]) -> None:
        """Visit."""

    (text,) = results_of(call("visit", places=[{"city": 3}]), tools=[visit])
    assert "argument 'places' at [0].city: expected str, got 3 (int)" in text
    (text,) = results_of(call("visit", places=[{"town": "a"}]), tools=[visit])
    assert "expected list of Place" in text


def test_a_tool_may_be_made_of_a_schema() -> None:
    async def answer(arguments: Any) -> str:
        return f"got {arguments}"

    made: Tool[..., Any] = Tool(
        name="ask", description="", parameters={"type": "object"}, run=answer
    )
    assert results_of(call("ask", a=1), tools=[made]) == ["got {'a': 1}"]
    with pytest.raises(TypeError, match="by name"):
        made(1)


def test_a_function_without_types_is_refused() -> None:
    with pytest.raises(SignatureError, match="parameter x has no type"):

        @tool
        def guess(x) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
            """Guess."""


def test_a_type_that_json_cannot_carry_is_refused() -> None:
    with pytest.raises(SignatureError, match="parameter x has the type bytes"):

        @tool
        def guess(x: bytes) -> None:
            """Guess."""
