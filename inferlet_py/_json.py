"""JSON that arrives in pieces: what is known of it so far, and where it goes wrong."""

from __future__ import annotations

import re
from typing import Any, Literal

__all__ = ["JsonReader", "WrongJsonError"]

_SPACE = re.compile(r"[ \t\n\r]*")
_PLAIN = re.compile(r'[^"\\]*')
_NUMBER_CHARACTERS = re.compile(r"[-+0-9.eE]*")
_NUMBER = re.compile(r"(-?(?:0|[1-9]\d*))(\.\d+)?([eE][-+]?\d+)?", re.ASCII)
_HEX = re.compile(r"[0-9a-fA-F]{4}")
_LITERALS: dict[str, Any] = {"true": True, "false": False, "null": None}
_ESCAPES = {
    '"': '"',
    "\\": "\\",
    "/": "/",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
}
_SHOWN = 20

Expected = Literal[
    "a value", "a value or ]", "a key or }", "a key", ":", ", or ]", ", or }", "the end"
]
Token = Literal["", "string", "number", "word"]


class WrongJsonError(ValueError):
    """A text is no JSON.

    Attributes:
        expected: What should be there.
        position: Of the character that does not fit, or the length of a text that ends early.
    """

    __module__ = "inferlet_py"

    def __init__(self, expected: str, found: str, position: int) -> None:
        shown = repr(found[:_SHOWN]) if found else "the end"
        super().__init__(f"expected {expected} at character {position}, got {shown}")
        self.expected, self.position = expected, position


class JsonReader:
    """Reads JSON piece by piece, as a model writes it.

    It takes what ``json.loads(text, strict=False)`` takes, but for ``NaN`` and ``Infinity``, which
    are no JSON.

    Attributes:
        value: What is known so far; None before anything is. Objects and lists grow, a string is
            as long as it is; a number counts once it has ended, a key once its value begins.
        is_complete: Whether the value is whole. A number at the top ends only with ``finish``.
    """

    def __init__(self) -> None:
        self.value: Any = None
        self.is_complete = False
        self._stack: list[dict[str, Any] | list[Any]] = []
        self._keys: list[
            str
        ] = []  # of the objects in the stack, the one that has a value next
        self._expected: Expected = "a value"
        self._token: Token = ""
        self._text: list[str] = []  # of the string, number or word that is open
        self._escape = ""
        self._surrogate = ""  # the first half of a pair that was escaped
        self._is_shown = False  # the open string is in its place already
        self._position = 0

    def feed(self, text: str) -> Any:
        """Read more, and return the value so far.

        Raises:
            WrongJsonError: It is no JSON; nothing more can be read.
        """
        at = 0
        while at < len(text):
            if self._token == "string":
                at = self._read_string(text, at)
            elif self._token == "number":
                at = self._read_number(text, at)
            elif self._token == "word":
                at = self._read_word(text, at)
            else:
                at = self._read_structure(text, at)
        self._show_open_string()
        self._position += len(text)
        return self.value

    def finish(self) -> Any:
        """Return the value.

        Raises:
            WrongJsonError: It is not complete.
        """
        if self._token == "number":
            self._end_number("", 0)
        if not self.is_complete:
            raise self._error(
                "the rest of a string" if self._token else self._expected, "", 0
            )
        return self.value

    # ---- structure -------------------------------------------------------------------------

    def _read_structure(self, text: str, at: int) -> int:
        match = _SPACE.match(text, at)
        assert match is not None, "it may be empty"
        at = match.end()
        if at == len(text):
            return at
        character, expected = text[at], self._expected
        if expected in ("a value", "a value or ]"):
            if character == "]" and expected == "a value or ]":
                return self._close(at)
            return self._begin_value(text, at)
        if expected in ("a key", "a key or }"):
            if character == '"':
                self._token, self._is_shown = "string", False
                return at + 1
            if character == "}" and expected == "a key or }":
                return self._close(at)
        elif expected == ":":
            if character == ":":
                self._expected = "a value"
                return at + 1
        elif expected in (", or ]", ", or }"):
            if character == ",":
                self._expected = "a key" if expected == ", or }" else "a value"
                return at + 1
            if character == expected[-1]:
                return self._close(at)
        raise self._error(expected, text[at:], at)

    def _begin_value(self, text: str, at: int) -> int:
        character = text[at]
        if character == "{":
            self._open({}, "a key or }")
        elif character == "[":
            self._open([], "a value or ]")
        elif character == '"':
            self._token, self._is_shown = "string", False
        elif character in "-0123456789":
            self._token = "number"
            return at
        elif character in "tfn":
            self._token = "word"
            return at
        else:
            raise self._error(self._expected, text[at:], at)
        return at + 1

    def _open(self, container: dict[str, Any] | list[Any], expected: Expected) -> None:
        self._put(container)
        self._stack.append(container)
        if isinstance(container, dict):
            self._keys.append("")
        self._expected = expected

    def _close(self, at: int) -> int:
        if isinstance(self._stack.pop(), dict):
            self._keys.pop()
        self._expect_next()
        return at + 1

    def _put(self, value: Any) -> None:
        """Put a value where it belongs."""
        if not self._stack:
            self.value = value
        elif isinstance(container := self._stack[-1], dict):
            container[self._keys[-1]] = value
        else:
            container.append(value)

    def _replace(self, value: Any) -> None:
        """Put a longer string where its beginning is."""
        container = self._stack[-1] if self._stack else None
        if isinstance(container, list):
            container[-1] = value
        else:
            self._put(value)

    def _expect_next(self) -> None:
        """Go on after a value."""
        if not self._stack:
            self._expected, self.is_complete = "the end", True
        else:
            is_list = isinstance(self._stack[-1], list)
            self._expected = ", or ]" if is_list else ", or }"

    # ---- strings ---------------------------------------------------------------------------

    def _read_string(self, text: str, at: int) -> int:
        if self._escape:
            return self._read_escape(text, at)
        match = _PLAIN.match(text, at)
        assert match is not None, "it may be empty"
        if match.end() > at:
            self._add_to_string(match[0])
        at = match.end()
        if at == len(text):
            return at
        if text[at] == "\\":
            self._escape = "\\"
        else:
            self._end_string()
        return at + 1

    def _read_escape(self, text: str, at: int) -> int:
        escape = self._escape = self._escape + text[at]
        if len(escape) == 2 and escape[1] != "u":
            if escape[1] not in _ESCAPES:
                raise self._error("an escape of JSON", escape, at - 1)
            self._add_to_string(_ESCAPES[escape[1]])
        elif len(escape) == 6:
            if not _HEX.fullmatch(escape, 2):
                raise self._error("four hexadecimal digits", escape, at - 5)
            self._add_unit(chr(int(escape[2:], 16)))
        else:
            return at + 1
        self._escape = ""
        return at + 1

    def _add_unit(self, unit: str) -> None:
        """Add a unit of UTF-16; two that are surrogates of each other make one character."""
        if self._surrogate and "\udc00" <= unit <= "\udfff":
            pair = (self._surrogate + unit).encode("utf-16", "surrogatepass")
            self._surrogate = ""
            self._text.append(pair.decode("utf-16"))
        elif "\ud800" <= unit <= "\udbff":
            self._add_to_string("")
            self._surrogate = unit
        else:
            self._add_to_string(unit)

    def _add_to_string(self, text: str) -> None:
        if self._surrogate:
            self._text.append(self._surrogate)  # the other half did not come
            self._surrogate = ""
        self._text.append(text)

    def _end_string(self) -> None:
        self._add_to_string("")
        string = "".join(self._text)
        self._token = ""
        self._text.clear()
        if self._expected in ("a key", "a key or }"):
            self._keys[-1] = string
            self._expected = ":"
            return
        (self._replace if self._is_shown else self._put)(string)
        self._expect_next()

    def _show_open_string(self) -> None:
        is_value = self._expected in ("a value", "a value or ]")
        if self._token != "string" or not is_value:
            return
        self._text[:] = ["".join(self._text)]
        (self._replace if self._is_shown else self._put)(self._text[0])
        self._is_shown = True

    # ---- numbers and words -----------------------------------------------------------------

    def _read_number(self, text: str, at: int) -> int:
        match = _NUMBER_CHARACTERS.match(text, at)
        assert match is not None, "it may be empty"
        self._text.append(match[0])
        if match.end() < len(text):
            self._end_number(text, match.end())
        return match.end()

    def _end_number(self, text: str, at: int) -> None:
        number = "".join(self._text)
        match = _NUMBER.fullmatch(number)
        if match is None:
            raise self._error("a number", number + text[at : at + 1], at - len(number))
        is_int = match[2] is None and match[3] is None
        try:
            value = int(number) if is_int else float(number)
        except ValueError:  # Python limits the digits of an int
            raise self._error("a shorter number", number, at - len(number)) from None
        self._end_value(value)

    def _read_word(self, text: str, at: int) -> int:
        word = "".join(self._text) + text[at]
        if not any(literal.startswith(word) for literal in _LITERALS):
            raise self._error(self._expected, word, at + 1 - len(word))
        self._text[:] = [word]
        if word in _LITERALS:
            self._end_value(_LITERALS[word])
        return at + 1

    def _end_value(self, value: Any) -> None:
        self._token = ""
        self._text.clear()
        self._put(value)
        self._expect_next()

    def _error(self, expected: str, found: str, at: int) -> WrongJsonError:
        """Return an error: ``found`` stands at ``at``, from the start of this piece."""
        return WrongJsonError(expected, found, self._position + at)
