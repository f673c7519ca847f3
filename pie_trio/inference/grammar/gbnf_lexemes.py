"""Cuts a GBNF grammar into lexemes and rules over them, as llguidance wants it.

Single characters as lexemes would always be right, and slow: each one is a step of the
parser, for each token of the vocabulary. So what is regular becomes a lexeme as far as that
means the same, which ``gbnf_positions`` tells; what does not is taken apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pie_trio.inference.grammar.gbnf_ast import (
    Characters,
    Choice,
    Node,
    Piece,
    Reference,
    Repeat,
    Sequence,
)
from pie_trio.inference.grammar.gbnf_parser import ROOT
from pie_trio.inference.grammar.gbnf_positions import (
    CharacterSets,
    Lexeme,
    OutOfBudgetError,
    Positions,
    find_conflicts,
)
from pie_trio.inference.grammar.gbnf_rules import (
    children,
    nodes_of,
    recursive_rules,
    references,
    without_tail_recursion,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["MAX_STEPS", "cut_into_lexemes"]

MAX_POSITIONS = 20_000
"""Character classes in one lexeme, with those of the rules that it refers to."""

MAX_STEPS = 400_000
"""Of the search for conflicts: half a second. Beyond, every character is a lexeme."""


def cut_into_lexemes(
    rules: Mapping[str, Node], *, max_steps: int = MAX_STEPS
) -> tuple[dict[str, Node], dict[str, Node]]:
    """Return two grammars: rules whose leaves are pieces, and the rules that pieces refer to.

    Args:
        rules: As parsed.
        max_steps: How long to look for the largest lexemes.
    """
    cutter = _Cutter(rules, max_steps)
    return cutter.cut(), cutter.rules


class _Cutter:
    """Takes nodes apart until no lexeme can swallow what belongs to the next one."""

    def __init__(self, rules: Mapping[str, Node], max_steps: int) -> None:
        self.rules = {n: without_tail_recursion(n, node) for n, node in rules.items()}
        self._recursive = recursive_rules(self.rules)
        self._sets = CharacterSets(
            [
                n
                for rule in self.rules.values()
                for n in nodes_of(rule)
                if isinstance(n, Characters)
            ]
        )
        self._sizes: dict[int, int] = {}  # by the id of a node
        # By the id of each node that was taken apart: the items of a sequence before which
        # it was cut. The others have no choice.
        self._cuts: dict[int, set[int]] = {}
        self._is_apart_all = max_steps <= 0
        self._budget = max_steps

    def cut(self) -> dict[str, Node]:
        while True:
            rules = self._cut_rules()
            if self._is_apart_all:
                return rules
            try:
                are_more = self._cut_conflicts(rules)
            except OutOfBudgetError:
                self._is_apart_all = True
            else:
                if not are_more:
                    return rules

    def _cut_rules(self) -> dict[str, Node]:
        """Return the rules that the root needs, over the largest pieces allowed."""
        rules: dict[str, Node] = {}
        waiting = [ROOT]
        while waiting:
            name = waiting.pop()
            if name not in rules:
                rules[name] = self._cut_node(self.rules[name])
                waiting += references(rules[name])
        return rules

    def _cut_node(self, node: Node) -> Node:
        if self._can_be_piece(node):
            return Piece(node, node)
        if isinstance(node, Repeat):
            return Repeat(self._cut_node(node.item), node.minimum, node.maximum)
        if isinstance(node, Choice):
            return Choice(tuple(self._cut_node(option) for option in node.options))
        if isinstance(node, Sequence):
            return Sequence(tuple(self._cut_items(node)))
        return node

    def _cut_items(self, node: Sequence) -> Iterator[Node]:
        """Yield what is in a sequence, neighbours in one piece."""
        cuts = self._cuts.get(id(node), set())
        start, size = 0, 0  # of the items that are waiting for their neighbours
        for index, item in enumerate(node.items):
            is_piece = self._can_be_piece(item)
            size += self._size(item) if is_piece else 0
            is_cut = self._is_apart_all or index in cuts or size > MAX_POSITIONS
            if start < index and (is_cut or not is_piece):
                yield _piece(node, start, index)
                start, size = index, self._size(item) if is_piece else 0
            if not is_piece:
                yield self._cut_node(item)
                start, size = index + 1, 0
        if start < len(node.items):
            yield _piece(node, start, len(node.items))

    def _can_be_piece(self, node: Node) -> bool:
        if isinstance(node, Characters):
            return True
        if self._is_apart_all or id(node) in self._cuts:
            return False
        return self._size(node) <= MAX_POSITIONS

    def _size(self, node: Node) -> int:
        """Return the positions in a node; more than are allowed if it is not regular."""
        size = self._sizes.get(id(node))
        if size is None:
            if isinstance(node, Reference):
                is_recursive = node.name in self._recursive
                size = (
                    MAX_POSITIONS + 1
                    if is_recursive
                    else self._size(self.rules[node.name])
                )
            else:
                size = sum(map(self._size, children(node))) + isinstance(
                    node, Characters
                )
            self._sizes[id(node)] = size
        return size

    def _cut_conflicts(self, rules: Mapping[str, Node]) -> bool:
        """Take apart what is in conflict; return whether there was anything."""
        positions = Positions(self._sets, self.rules, self._budget)
        pieces = [
            n for rule in rules.values() for n in nodes_of(rule) if isinstance(n, Piece)
        ]
        lexemes = {id(piece): positions.add(piece.inner) for piece in pieces}
        bits = {key: 1 << index for index, key in enumerate(lexemes)}
        beginning = _find_following(rules, lexemes, bits, positions)
        found = find_conflicts(positions, list(lexemes.values()), beginning)
        self._budget = positions.budget
        for index, before, after in found:
            piece = pieces[index]
            cuts = self._cuts.setdefault(id(piece.owner), set())
            if isinstance(piece.owner, Sequence):
                cuts.add(piece.offset + after)
                if (
                    before == after
                ):  # it happens inside of an item: that has to stand alone
                    cuts.add(piece.offset + after + 1)
        return bool(found)


def _piece(owner: Sequence, start: int, end: int) -> Piece:
    """Return a piece for one or more items of a sequence."""
    if end - start == 1:
        return Piece(owner.items[start], owner.items[start])
    return Piece(Sequence(owner.items[start:end]), owner, start)


def _find_following(
    rules: Mapping[str, Node],
    lexemes: Mapping[int, Lexeme],
    bits: Mapping[int, int],
    positions: Positions,
) -> int:
    """Set which lexemes can follow each one: the FIRST and FOLLOW of parsing.

    Args:
        rules: Over pieces.
        lexemes: By the id of their piece.
        bits: One for each of them.
        positions: Has the budget.

    Returns:
        The bits of those with which an output can begin.
    """
    first: dict[str, int] = dict.fromkeys(rules, 0)
    can_be_empty: dict[str, bool] = dict.fromkeys(rules, False)
    following: dict[str, int] = dict.fromkeys(rules, 0)

    def begin(node: Node) -> tuple[int, bool]:
        """Return what a node can begin with, and whether it can be empty."""
        if isinstance(node, Piece):
            return bits[id(node)], lexemes[id(node)].can_be_empty
        if isinstance(node, Reference):
            return first[node.name], can_be_empty[node.name]
        parts = [begin(child) for child in children(node)]
        if isinstance(node, Sequence):
            mask = 0
            for part, is_empty in parts:
                mask |= part
                if not is_empty:
                    return mask, False
            return mask, True
        mask = 0
        for part, _ in parts:
            mask |= part
        is_optional = isinstance(node, Repeat) and node.minimum == 0
        return mask, is_optional or any(is_empty for _, is_empty in parts)

    def pass_on(node: Node, behind: int) -> None:
        """Tell the lexemes in a node what comes behind it."""
        if isinstance(node, Piece):
            lexemes[id(node)].following |= behind
        elif isinstance(node, Reference):
            following[node.name] |= behind
        elif isinstance(node, Repeat):
            again = begin(node.item)[0] if node.maximum != 1 else 0
            pass_on(node.item, behind | again)
        elif isinstance(node, Choice):
            for option in node.options:
                pass_on(option, behind)
        else:
            for item in reversed(children(node)):
                pass_on(item, behind)
                mask, is_empty = begin(item)
                behind = behind | mask if is_empty else mask

    num_nodes = sum(1 for node in rules.values() for _ in nodes_of(node))
    while True:
        positions.spend(num_nodes)
        found = {name: begin(node) for name, node in rules.items()}
        if found == {name: (first[name], can_be_empty[name]) for name in rules}:
            break
        first = {name: mask for name, (mask, _) in found.items()}
        can_be_empty = {name: is_empty for name, (_, is_empty) in found.items()}
    while True:
        positions.spend(2 * num_nodes)
        before = dict(following)
        for name, node in rules.items():
            pass_on(node, following[name])
        if following == before:
            return first[ROOT]
