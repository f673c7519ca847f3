"""The tools that the corpus knows, and what they really return.

All are pure functions, so that an example or a test can run them anywhere: what the
weather is depends on the city's name alone.
"""

from __future__ import annotations

import ast
import operator
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from training.corpus import lexicon

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

JSONValue = str | int | float | list[str]
Result = dict[str, JSONValue]

SKIES = ("sunny", "cloudy", "rainy", "snowy", "windy", "foggy", "stormy", "clear")
_FACTORS = {
    ("km", "m"): 1000.0,
    ("m", "cm"): 100.0,
    ("kg", "g"): 1000.0,
    ("hours", "minutes"): 60.0,
    ("minutes", "seconds"): 60.0,
    ("days", "hours"): 24.0,
    ("weeks", "days"): 7.0,
    ("l", "ml"): 1000.0,
}
UNITS = (*_FACTORS, *((b, a) for a, b in _FACTORS), ("C", "F"), ("F", "C"))
_OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class ToolError(Exception):
    """A tool was called with arguments it cannot use."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as it is declared: its parameters, each with a JSON type, and its use."""

    name: str
    parameters: Mapping[str, str]
    description: str


TOOLS = {
    tool.name: tool
    for tool in (
        Tool("calculator", {"expression": "string"}, "compute a number"),
        Tool("weather", {"city": "string"}, "the weather in a city"),
        Tool("lookup", {"key": "string"}, "the value of a key"),
        Tool(
            "convert",
            {"value": "number", "from": "string", "to": "string"},
            "change the unit of a value",
        ),
        Tool("search", {"word": "string"}, "the items with a word in their name"),
    )
}


def tidy(value: float) -> int | float:
    """Return ``value`` with at most two decimals, whole numbers as ``int``."""
    rounded = round(value, 2)
    return int(rounded) if rounded == int(rounded) else rounded


def calculate(expression: str) -> int | float:
    """Return the value of an expression of numbers, ``+ - * /`` and parentheses.

    Raises:
        ToolError: The expression holds anything else, or divides by zero.
    """

    def value_of(node: ast.expr) -> float:
        match node:
            case ast.Constant(value=int() | float() as value):
                return value
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](value_of(left), value_of(right))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value_of(operand)
        raise ToolError(f"cannot compute {expression!r}: use numbers and + - * /")

    try:
        return tidy(value_of(ast.parse(expression, mode="eval").body))
    except (SyntaxError, ZeroDivisionError) as error:
        raise ToolError(f"cannot compute {expression!r}: {error}") from error


def convert(value: float, source: str, target: str) -> int | float:
    """Return ``value`` in another unit.

    Raises:
        ToolError: The pair of units is not known.
    """
    match source, target:
        case "C", "F":
            return tidy(value * 9 / 5 + 32)
        case "F", "C":
            return tidy((value - 32) * 5 / 9)
    if (source, target) in _FACTORS:
        return tidy(value * _FACTORS[source, target])
    if (target, source) in _FACTORS:
        return tidy(value / _FACTORS[target, source])
    raise ToolError(f"cannot convert {source} to {target}")


def weather(city: str) -> tuple[str, int]:
    """Return sky and degrees Celsius of ``city``, the same on every day."""
    digest = zlib.crc32(city.encode())
    return SKIES[digest % len(SKIES)], digest // 16 % 45 - 10


def search(word: str) -> list[str]:
    """Return the items of the shop whose name has ``word`` in it."""
    digest = zlib.crc32(word.encode())
    things = lexicon.OBJECTS if word in lexicon.COLOURS else lexicon.COLOURS
    chosen = [things[(digest >> shift) % len(things)] for shift in (3, 9, 17)]
    unique = sorted(set(chosen))[: 1 + digest % 3]
    if word in lexicon.COLOURS:
        return [f"{word} {thing}" for thing in unique]
    return [f"{thing} {word}" for thing in unique] if word in lexicon.OBJECTS else []


@dataclass(frozen=True, slots=True)
class Toolbox:
    """Runs tools by name; ``store`` is what ``lookup`` reads."""

    store: Mapping[str, str | int] = field(default_factory=dict)

    def call(self, name: str, arguments: Mapping[str, JSONValue]) -> Result:
        """Return the result of a call, or ``{"error": ...}`` where it fails."""
        try:
            return self._call(name, arguments)
        except (ToolError, KeyError, ValueError, TypeError) as error:
            return {"error": str(error)}

    def _call(self, name: str, arguments: Mapping[str, JSONValue]) -> Result:
        match name:
            case "calculator":
                return {"result": calculate(str(arguments["expression"]))}
            case "weather":
                sky, degrees = weather(str(arguments["city"]))
                return {"sky": sky, "degrees": degrees}
            case "lookup":
                key = str(arguments["key"])
                return {"value": self.store[key]} if key in self.store else _NOT_FOUND
            case "convert":
                value = float(str(arguments["value"]))
                source, target = str(arguments["from"]), str(arguments["to"])
                return {"result": convert(value, source, target)}
            case "search":
                return {"items": search(str(arguments["word"]))}
        raise ToolError(f"there is no tool {name}")


_NOT_FOUND: Result = {"error": "not found"}


def as_observation(result: Result) -> str:
    """Return a result as ReACT shows it: plain words after ``Observation:``."""
    match result:
        case {"error": error}:
            return str(error)
        case {"sky": sky, "degrees": degrees}:
            return f"{sky}, {degrees} degrees"
        case {"items": list() as items}:
            return ", ".join(items) or "nothing"
    return str(next(iter(result.values())))
