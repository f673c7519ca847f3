"""What a GBNF grammar is made of."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "MAX_CHARACTER",
    "Characters",
    "Choice",
    "Node",
    "Piece",
    "Reference",
    "Repeat",
    "Sequence",
]

MAX_CHARACTER = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)


@dataclass(frozen=True, eq=False, slots=True)
class Characters:
    """One character out of a set.

    Attributes:
        ranges: First and last code point of each, in order and apart; no surrogates.
    """

    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def of(
        cls, ranges: list[tuple[int, int]], *, is_negated: bool = False
    ) -> Characters:
        """Return the set of some ranges, or of everything else."""
        merged: list[tuple[int, int]] = []
        for first, last in sorted(ranges):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
            else:
                merged.append((first, last))
        if is_negated:
            ends = [-1, *(last for _, last in merged)]
            starts = [*(first for first, _ in merged), MAX_CHARACTER + 1]
            merged = [
                (end + 1, start - 1) for end, start in zip(ends, starts, strict=True)
            ]
        return cls(tuple(_without_surrogates(merged)))


def _without_surrogates(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    low, high = _SURROGATES
    parts = [
        part
        for first, last in ranges
        for part in ((first, min(last, low - 1)), (max(first, high + 1), last))
    ]
    return [(first, last) for first, last in parts if first <= last]


# Nodes are compared by identity: the same text means something else elsewhere.


@dataclass(frozen=True, eq=False, slots=True)
class Sequence:
    """One after the other; nothing at all if it is empty."""

    items: tuple[Node, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Choice:
    """One of them; there are at least two."""

    options: tuple[Node, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Repeat:
    """The same again and again; ``maximum`` is None where there is none."""

    item: Node
    minimum: int
    maximum: int | None


@dataclass(frozen=True, eq=False, slots=True)
class Reference:
    """A rule, by its name."""

    name: str


@dataclass(frozen=True, eq=False, slots=True)
class Piece:
    """What is matched as one lexeme; the parser never makes it, see ``gbnf_lexemes``.

    Attributes:
        inner: Regular.
        owner: The node of the grammar to take apart if it cannot be one lexeme: ``inner``,
            or the sequence that has the items of ``inner``.
        offset: Where in ``owner`` these items begin.
    """

    inner: Node
    owner: Node
    offset: int = 0


Node = Characters | Sequence | Choice | Repeat | Reference | Piece
