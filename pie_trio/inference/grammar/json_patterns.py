"""Regular expressions of JSON Schema, which are JavaScript's, in the notation of llguidance.

Most of them mean the same in both. Those that do not are written otherwise, or refused.
"""

from __future__ import annotations

import re

from pie_trio.errors import GrammarError

__all__ = ["portable_pattern"]

# ECMA-262, LineTerminator and WhiteSpace: Rust's `.` and `\s` differ by a few characters.
_LINE_ENDS = r"\n\r\u{2028}\u{2029}"
_SPACES = (
    r"\t\n\x0B\x0C\r\x20\u{A0}\u{1680}\u{2000}-\u{200A}"
    r"\u{2028}\u{2029}\u{202F}\u{205F}\u{3000}\u{FEFF}"
)
_CLASS_ESCAPES = {
    r"\s": f"[{_SPACES}]",
    r"\S": f"[^{_SPACES}]",
    r"\d": "[0-9]",
    r"\D": "[^0-9]",
    r"\w": "[0-9A-Za-z_]",
    r"\W": "[^0-9A-Za-z_]",
}
_CHARACTER_ESCAPES = frozenset("nrtf^$\\.*+?()[]{}|/-")

_ESCAPE = (
    r"\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|u\{[0-9A-Fa-f]{1,6}\}|[pP]\{\w+(?:=\w+)?\}"
    r"|[^xupP])"
)
_PIECE = re.compile(
    rf"(?P<escape>{_ESCAPE})|(?P<group>\(\?(?:<[A-Za-z_]\w*>|<[=!]|.)?)"
    r"|(?P<repetition>\{[^{}]*\}?)|(?P<class>\[\^?)|(?P<other>[^\\])",
    re.DOTALL | re.ASCII,
)
_CLASS_PIECE = re.compile(rf"(?P<escape>{_ESCAPE})|[^\\]", re.DOTALL | re.ASCII)
_REPETITION = re.compile(r"\{[0-9]+(,[0-9]*)?\}", re.ASCII)


def portable_pattern(pattern: str, where: str) -> str:
    """Return a pattern for llguidance that matches what JavaScript matches.

    Args:
        pattern: As the schema has it; it may match anywhere in a string.
        where: The beginning of an error's message.

    Raises:
        GrammarError: It looks around, refers back, or is not understood by all.
    """
    try:
        return _Translator(pattern).translate()
    except ValueError as error:
        raise GrammarError(f"{where}: the pattern {pattern!r}: {error}") from error


class _Translator:
    """Goes through one pattern; raises ValueError for what is not supported."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._position = 0

    def translate(self) -> str:
        parts: list[str] = []
        while match := self._next(_PIECE):
            piece = match[0]
            if match["escape"]:
                parts.append(_escape(piece))
            elif match["group"]:
                parts.append(_group(piece))
            elif match["class"]:
                parts += [piece, *self._class(), "]"]
            elif match["repetition"] and not _REPETITION.fullmatch(piece):
                raise ValueError(
                    f"{piece} is no repetition: write \\{{ for the character"
                )
            else:
                parts.append(f"[^{_LINE_ENDS}]" if piece == "." else piece)
        return "".join(parts)

    def _class(self) -> list[str]:
        """Translate a class from behind its bracket to its end."""
        parts: list[str] = []
        previous = "none"  # or: one character, a set of them, the dash of a range
        while match := self._next(_CLASS_PIECE):
            piece = match[0]
            if piece == "]":
                if not parts:
                    raise ValueError("an empty class is not supported")
                return parts
            is_set = piece in _CLASS_ESCAPES or piece[:2] in {r"\p", r"\P"}
            if piece == "-":
                following = self._pattern[self._position : self._position + 2]
                ends = following[:1] == "]" or following in _CLASS_ESCAPES
                if previous == "character" and not ends:
                    parts.append("-")
                    previous = "range"
                    continue
            if is_set and previous == "range":
                raise ValueError(f"{piece} cannot end a range")
            if match["escape"]:
                parts.append(_escape(piece))
            else:
                # Rust has sets in sets, and operators; none of them are JavaScript's.
                parts.append(f"\\{piece}" if piece in "[&~-^" else piece)
            is_end = previous == "range"
            previous = "set" if is_set or is_end else "character"
        raise ValueError("a class has no end")

    def _next(self, expression: re.Pattern[str]) -> re.Match[str] | None:
        if self._position == len(self._pattern):
            return None
        match = expression.match(self._pattern, self._position)
        if match is None:
            rest = self._pattern[self._position : self._position + 6]
            raise ValueError(f"{rest} is no escape")
        self._position = match.end()
        return match


def _escape(piece: str) -> str:
    if piece in _CLASS_ESCAPES:
        return _CLASS_ESCAPES[piece]
    if piece == r"\v":
        return r"\x0B"
    if piece == r"\0":
        return r"\x00"
    if piece[1] == "u" and piece[2] != "{":
        return f"\\u{{{piece[2:]}}}"
    if piece[1] not in _CHARACTER_ESCAPES | set("xupP"):
        raise ValueError(f"{piece} is not supported")
    return piece


def _group(piece: str) -> str:
    if piece in {"(?=", "(?!", "(?<=", "(?<!"}:
        raise ValueError(f"{piece}...) looks around, which is not supported")
    if piece != "(?:" and not piece.endswith(">"):
        raise ValueError(f"{piece} is not supported")
    return "(?:"
