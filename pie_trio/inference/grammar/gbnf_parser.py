"""Reads GBNF, the notation of llama.cpp, as its guide describes it.

See https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md.
"""

from __future__ import annotations

import re

from pie_trio.errors import GrammarError
from pie_trio.inference.grammar.gbnf_ast import (
    MAX_CHARACTER,
    Characters,
    Choice,
    Node,
    Reference,
    Repeat,
    Sequence,
)

__all__ = ["MAX_REPETITION", "ROOT", "parse_gbnf"]

ROOT = "root"

MAX_REPETITION = 2000
"""The largest number in braces; llama.cpp has the same limit."""

MAX_DEPTH = 100
"""Parentheses inside of one another."""

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_BLANK_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_LINE_END = re.compile(r"\r?\n|\r")
_BRACES = re.compile(r"\{[ \t]*([0-9]{1,9})[ \t]*(,[ \t]*([0-9]{1,9})?[ \t]*)?\}")
_HEXADECIMAL = {length: re.compile(rf"[0-9A-Fa-f]{{{length}}}") for length in (2, 4, 8)}
_ESCAPE_LENGTHS = {"x": 2, "u": 4, "U": 8}
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "[": "[", "]": "]", "\\": "\\"}


def parse_gbnf(text: str) -> dict[str, Node]:
    """Return the rules by name; ``root`` is among them, and so is each that one refers to.

    Raises:
        GrammarError: The text is malformed; the message has line and column.
    """
    return _Parser(text).parse()


class _Parser:
    """Goes through the text once, from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._depth = 0
        self._references: dict[str, int] = {}  # the first place of each name

    def parse(self) -> dict[str, Node]:
        rules: dict[str, Node] = {}
        self._skip(_BLANK_AND_LINES)
        while self._position < len(self._text):
            start = self._position
            name = self._name()
            if name in rules:
                raise self._error(f"the rule {name} is there already", start)
            self._skip(_BLANK)
            if not self._text.startswith("::=", self._position):
                raise self._error(f"expected ::= after the name {name}")
            self._position += 3
            self._skip(_BLANK_AND_LINES)
            rules[name] = self._choice(is_nested=False)
            if self._position < len(self._text) and not self._skip(_LINE_END):
                raise self._error("expected a symbol, | or the end of the line")
            self._skip(_BLANK_AND_LINES)
        for name, place in self._references.items():
            if name not in rules:
                raise self._error(f"there is no rule {name}", place)
        if ROOT not in rules:
            raise self._error(f"there is no rule {ROOT}, with which an output begins")
        return rules

    def _choice(self, *, is_nested: bool) -> Node:
        options = [self._sequence(is_nested=is_nested)]
        while self._peek() == "|":
            self._position += 1
            self._skip(_BLANK_AND_LINES)
            options.append(self._sequence(is_nested=is_nested))
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _sequence(self, *, is_nested: bool) -> Node:
        blank = _BLANK_AND_LINES if is_nested else _BLANK
        items: list[Node] = []
        while (symbol := self._symbol()) is not None:
            self._skip(blank)
            while (repeated := self._repetition(symbol)) is not None:
                symbol = repeated
                self._skip(blank)
            items.append(symbol)
        return items[0] if len(items) == 1 else Sequence(tuple(items))

    def _symbol(self) -> Node | None:
        """Return what begins here, or None where nothing does."""
        start = self._position
        character = self._peek()
        if character == '"':
            return self._literal()
        if character == "[":
            return self._class()
        if character == ".":
            self._position += 1
            return Characters.of([], is_negated=True)
        if character == "(":
            return self._group()
        if character and character in "*+?{":
            raise self._error(f"there is nothing before {character} to repeat")
        if character and character in "<!":
            raise self._error("tokens in angle brackets are not supported: use text")
        if _NAME.match(character):
            name = self._name()
            self._references.setdefault(name, start)
            return Reference(name)
        return None

    def _group(self) -> Node:
        start = self._position
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"more than {MAX_DEPTH} parentheses are open")
        self._position += 1
        self._skip(_BLANK_AND_LINES)
        inner = self._choice(is_nested=True)
        if self._peek() != ")":
            if self._position < len(self._text):
                raise self._error("expected a symbol, | or )")
            raise self._error("this parenthesis is not closed", start)
        self._position += 1
        self._depth -= 1
        return inner

    def _repetition(self, item: Node) -> Node | None:
        """Return the item with the operator that stands here, or None."""
        character = self._peek()
        if character in ("*", "+", "?"):
            self._position += 1
            bounds = {"*": (0, None), "+": (1, None), "?": (0, 1)}
            return Repeat(item, *bounds[character])
        if character != "{":
            return None
        match = _BRACES.match(self._text, self._position)
        if match is None:
            raise self._error("expected {m}, {m,} or {m,n}")
        minimum = int(match[1])
        maximum = int(match[3]) if match[3] else None if match[2] else minimum
        if max(minimum, maximum or 0) > MAX_REPETITION:
            raise self._error(f"more than {MAX_REPETITION} repetitions")
        if maximum is not None and maximum < minimum:
            raise self._error(f"at least {minimum} and at most {maximum} is impossible")
        self._position = match.end()
        return Repeat(item, minimum, maximum) if maximum != 0 else Sequence(())

    def _literal(self) -> Node:
        start = self._position
        self._position += 1
        items: list[Node] = []
        while self._peek() != '"':
            code = self._character(start)
            items.append(Characters.of([(code, code)]))
        self._position += 1
        return Sequence(tuple(items))

    def _class(self) -> Node:
        start = self._position
        self._position += 1
        is_negated = self._peek() == "^"
        self._position += is_negated
        ranges: list[tuple[int, int]] = []
        while self._peek() != "]":
            place = self._position
            first = last = self._character(start)
            if self._peek() == "-" and not self._text.startswith("-]", self._position):
                self._position += 1
                last = self._character(start)
            if last < first:
                raise self._error("a range ends before it begins", place)
            ranges.append((first, last))
        self._position += 1
        characters = Characters.of(ranges, is_negated=is_negated)
        if not characters.ranges:
            raise self._error("no character is in this class", start)
        return characters

    def _character(self, start: int) -> int:
        """Return the code of one character of a literal or class, maybe escaped."""
        place = self._position
        character = self._peek()
        if character in ("", "\n", "\r"):
            kind = "string" if self._text[start] == '"' else "class"
            raise self._error(f"this {kind} is not closed", start)
        self._position += 1
        if character != "\\":
            return ord(character)
        escape = self._peek()
        self._position += 1
        if escape in _ESCAPES:
            return ord(_ESCAPES[escape])
        if escape not in _ESCAPE_LENGTHS:
            raise self._error(f"\\{escape} is no escape", place)
        match = _HEXADECIMAL[_ESCAPE_LENGTHS[escape]].match(self._text, self._position)
        if match is None:
            length = _ESCAPE_LENGTHS[escape]
            raise self._error(f"expected {length} hexadecimal digits", place)
        self._position = match.end()
        code = int(match[0], 16)
        if code > MAX_CHARACTER or 0xD800 <= code <= 0xDFFF:
            raise self._error(f"{code:#x} is no character", place)
        return code

    def _name(self) -> str:
        match = _NAME.match(self._text, self._position)
        if match is None:
            raise self._error("expected the name of a rule: letters, digits and -")
        self._position = match.end()
        return match[0]

    def _peek(self) -> str:
        return self._text[self._position : self._position + 1]

    def _skip(self, blank: re.Pattern[str]) -> bool:
        match = blank.match(self._text, self._position)
        if match is not None:
            self._position = match.end()
        return match is not None

    def _error(self, reason: str, position: int | None = None) -> GrammarError:
        place = self._position if position is None else position
        line = self._text.count("\n", 0, place) + 1
        column = place - self._text.rfind("\n", 0, place)
        return GrammarError(f"gbnf: line {line}, column {column}: {reason}")
