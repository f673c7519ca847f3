"""What llguidance says of a grammar, in a line that its author understands."""

from __future__ import annotations

import re

__all__ = ["explain"]

MAX_LENGTH = 400

_PLACE = re.compile(r"(?:at )?(\d+)\((\d+)\): ")
# Behind the first line there are lines of a text that the author did not write.
_NOISE = re.compile(r"(?:<non-verbose/>|<state>|\n).*", re.DOTALL)
_PREFIX = re.compile(r"(?:parser error: )?(?:failed to compile JSON schema: )?")
_ADVICE = (
    (
        re.compile(r"oneOf constraints are not supported.*"),
        "options of oneOf must visibly exclude each other, by their types or by another "
        "constant of a required property: use anyOf if more than one may match",
    ),
    (
        re.compile(r"lookarounds not supported yet; (?:Start|End) in regex.*"),
        "^ and $ are supported only where a pattern or all its alternatives begin and end",
    ),
    (
        re.compile(r"(.*(?:too big|too large|too complex|Too many|limit|exhausted).*)"),
        r"\1: make the grammar smaller, or less ambiguous",
    ),
)


def explain(error: str, *, num_lines: int = 0) -> str:
    """Return the message without what only llguidance's authors can use.

    Args:
        error: As llguidance has it.
        num_lines: Lines of the author's text, if the message's lines are those.
    """
    text = _NOISE.sub("", error).strip()
    if len(text) > MAX_LENGTH:  # it may quote all of the grammar
        text = f"{text[:MAX_LENGTH]} ..."
    place = _PLACE.match(text)
    text = _PREFIX.sub("", _PLACE.sub("", text), count=1)
    for pattern, advice in _ADVICE:
        text = pattern.sub(advice, text, count=1)
    if place is not None and num_lines:
        is_behind = int(place[1]) > num_lines
        where = "the end" if is_behind else f"line {place[1]}, column {place[2]}"
        text = f"{where}: {text}"
    return text
