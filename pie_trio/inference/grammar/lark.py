"""Which Lark grammars are let through to llguidance: nothing that leaves text, or skips checks."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, cast

from pie_trio.errors import GrammarError
from pie_trio.inference.grammar.json_schema import check_schema_value

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check_lark"]

# As llguidance's own lexer: https://github.com/guidance-ai/llguidance, parser/src/lark.
_TOKEN = re.compile(
    r"""(?P<blank>[ \t\r\n]+|(?:\#|//)[^\n]*)
    |(?P<string>"(?:\\.|[^"\\\n])*"i?)
    |(?P<regex>/(?:\\.|[^/\\])+/[imslux]*)
    |(?P<special><[^<>\s]+>)
    |(?P<grammar>@[A-Za-z0-9_-]+)
    |(?P<directive>%[A-Za-z]+)
    |(?P<name>[A-Za-z_][A-Za-z0-9_-]*)
    |(?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)

_OPTIONS = frozenset({"no_forcing", "allow_initial_skip", "ignore_once"})
MAX_INTERSECTIONS = 8
"""Operators & and ~ in a grammar: each one can double the work of one step of the lexer."""

MAX_DEFINITIONS = 300
"""Rules and terminals: an error below a long chain of them takes llguidance seconds."""

_REFUSED_ATTRIBUTES = frozenset({"max_tokens", "stop", "temperature"})


def check_lark(text: str) -> str:
    """Return a grammar as llguidance is to have it.

    Raises:
        GrammarError: It uses what Pie does not support; the message has line and column.
    """
    return "".join(_checked(text))


def _checked(text: str) -> Iterator[str]:
    """Yield the text piece by piece, schemas in the form that llguidance is to have."""
    position = 0
    name = ""
    num_intersections = num_definitions = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        assert match is not None, "every character matches"
        piece, start, position = match[0], position, match.end()
        if match["special"]:
            raise _refusal(text, start, f"the token {piece} is not supported: use text")
        if match["grammar"]:
            raise _refusal(text, start, f"there is no other grammar {piece}")
        if piece == "=" and name in _REFUSED_ATTRIBUTES:
            raise _refusal(text, start, f"the attribute {name} is not supported")
        is_repetition = text[position:].lstrip()[:1].isdigit()  # a ~ 2..3
        num_intersections += piece == "&" or (piece == "~" and not is_repetition)
        if num_intersections > MAX_INTERSECTIONS:
            raise _refusal(
                text, start, f"more than {MAX_INTERSECTIONS} operators & and ~"
            )
        num_definitions += piece == ":"
        if num_definitions > MAX_DEFINITIONS:
            raise _refusal(
                text, start, f"more than {MAX_DEFINITIONS} rules and terminals"
            )
        yield piece
        if piece in {"%json", "%regex", "%llguidance"}:
            value, position = _read_json(text, position)
            directive = _directive(text, start, piece, value)
            # Later lines keep their numbers; after the value, a line end would end the rule.
            yield "\n" * text.count("\n", match.end(), position) + directive
        if not match["blank"]:
            name = piece if match["name"] else ""


def _directive(text: str, start: int, piece: str, value: object) -> str:
    """Check what stands behind a word with %, and return it as llguidance is to have it."""
    if piece == "%json":
        try:
            return check_schema_value(value)
        except GrammarError as error:
            raise _refusal(text, start, str(error)) from error
    if piece == "%llguidance":
        options = cast("dict[str, object]", value) if isinstance(value, dict) else {}
        if unknown := sorted(options.keys() - _OPTIONS):
            raise _refusal(
                text,
                start,
                f"of %llguidance only {', '.join(sorted(_OPTIONS))} are supported, not "
                f"{', '.join(unknown)}",
            )
    return json.dumps(value)


def _read_json(text: str, position: int) -> tuple[object, int]:
    """Return the value that begins after white space, and where it ends."""
    while text[position : position + 1].isspace():
        position += 1
    try:
        value, end = json.JSONDecoder().raw_decode(text, position)
    except (ValueError, RecursionError) as error:
        raise _refusal(text, position, f"expected JSON, but {error}") from error
    return value, end


def _refusal(text: str, position: int, reason: str) -> GrammarError:
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    return GrammarError(f"lark: line {line}, column {column}: {reason}")
