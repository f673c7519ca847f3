"""Says whether a text is in the language of a GBNF grammar, slowly and by the definition."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pie_trio.inference.grammar.gbnf_ast import (
    Characters,
    Choice,
    Node,
    Reference,
    Repeat,
    Sequence,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


def is_in_language(rules: Mapping[str, Node], text: str) -> bool:
    """Compute where each rule can end from each place, until nothing is new."""
    size = len(text)
    ends = {(name, start): set[int]() for name in rules for start in range(size + 1)}
    while True:
        reader = _Reader(text, ends)
        new = {key: ends[key] | reader.match(rules[key[0]], key[1]) for key in ends}
        if new == ends:
            return size in ends["root", 0]
        ends = new


class _Reader:
    """Matches nodes with what is known of the rules."""

    def __init__(self, text: str, ends: Mapping[tuple[str, int], set[int]]) -> None:
        self._text = text
        self._ends = ends
        self._known: dict[tuple[int, int], set[int]] = {}

    def match(self, node: Node, start: int) -> set[int]:
        """Return where a node can end if it begins at ``start``."""
        key = (id(node), start)
        if key not in self._known:
            self._known[key] = self._match(node, start)
        return self._known[key]

    def _match(self, node: Node, start: int) -> set[int]:
        if isinstance(node, Characters):
            code = ord(self._text[start]) if start < len(self._text) else -1
            return {start + 1} if any(a <= code <= b for a, b in node.ranges) else set()
        if isinstance(node, Reference):
            return self._ends[node.name, start]
        if isinstance(node, Choice):
            return {end for option in node.options for end in self.match(option, start)}
        if isinstance(node, Sequence):
            here = {start}
            for item in node.items:
                here = self._after(item, here)
            return here
        assert isinstance(node, Repeat)
        # Beyond one round for each character, only what is empty can be repeated.
        most = node.minimum + len(self._text) + 1
        found: set[int] = set()
        here = {start}
        for number in range(1 + most if node.maximum is None else 1 + node.maximum):
            if number >= node.minimum:
                found |= here
            here = self._after(node.item, here)
        return found

    def _after(self, node: Node, places: set[int]) -> set[int]:
        return {end for place in places for end in self.match(node, place)}
