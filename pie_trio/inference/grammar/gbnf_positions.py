"""Where a longest match would not be what a GBNF grammar means.

llguidance cuts an output into lexemes, always the longest ones, and looks at other ways of
cutting no more. GBNF knows no lexemes. Both mean the same if, wherever a lexeme is complete,
a character that may follow it cannot make this or another lexeme longer.

Each lexeme becomes an automaton of positions (Glushkov 1961), one for each character class
in it. Two positions that one text can lead to are a pair; pairs are what is searched. Where
two lexemes end together, what may follow one and what may follow the other begin together.
What is taken for possible may not be: of nested rules only neighbours are seen, and counts
of repetitions are taken for ``*`` and ``+``. So conflicts are found that are none, but none
is missed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
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
    from collections.abc import Iterator, Mapping

__all__ = ["CharacterSets", "Lexeme", "OutOfBudgetError", "Positions", "find_conflicts"]


class OutOfBudgetError(Exception):
    """A grammar is too large to be looked through."""


class CharacterSets:
    """Sets of characters as the bits of an integer, one for each stretch of equal ones."""

    def __init__(self, nodes: list[Characters]) -> None:
        """Cut all characters where a range of any node begins or ends."""
        cuts = sorted(
            {
                cut
                for node in nodes
                for first, last in node.ranges
                for cut in (first, last + 1)
            }
        )
        self._index = {cut: index for index, cut in enumerate(cuts)}

    def mask(self, node: Characters) -> int:
        """Return the bits of one of the nodes."""
        mask = 0
        for first, last in node.ranges:
            mask |= (1 << self._index[last + 1]) - (1 << self._index[first])
        return mask


@dataclass(slots=True)
class Lexeme:
    """What is to be matched in one piece, and what may come behind it.

    Attributes:
        first: The positions that it can begin with.
        can_be_empty: Whether it matches nothing at all too.
        following: Bits of the lexemes that can follow it in the grammar.
    """

    first: tuple[int, ...] = ()
    can_be_empty: bool = False
    following: int = 0


@dataclass(slots=True)
class Positions:
    """The automata of all lexemes side by side.

    Attributes:
        budget: Steps that may still be done.
        masks: Characters of each position.
        follow: The positions that may come next, in parts that are shared.
        owners: The lexeme of each position.
        items: Where the lexeme is a sequence, the item of it that each position is in.
        last: Whether a lexeme is complete with it.
    """

    sets: CharacterSets
    rules: Mapping[str, Node]
    budget: int
    masks: list[int] = field(default_factory=list[int])
    follow: list[list[tuple[int, ...]]] = field(
        default_factory=list[list[tuple[int, ...]]]
    )
    owners: list[int] = field(default_factory=list[int])
    items: list[int] = field(default_factory=list[int])
    last: list[bool] = field(default_factory=list[bool])
    num_lexemes: int = 0

    def add(self, node: Node) -> Lexeme:
        """Add the automaton of a regular node."""
        start = len(self.masks)
        can_be_empty, first, last = self._build(node)
        self.owners += [self.num_lexemes] * (len(self.masks) - start)
        self.num_lexemes += 1
        for position in last:
            self.last[position] = True
        return Lexeme(first, can_be_empty)

    def spend(self, steps: int) -> None:
        """Take steps off the budget, or raise :class:`OutOfBudgetError`."""
        self.budget -= steps
        if self.budget < 0:
            raise OutOfBudgetError

    def _build(self, node: Node) -> tuple[bool, tuple[int, ...], tuple[int, ...]]:
        """Return whether it can be empty, and what it begins and ends with."""
        if isinstance(node, Characters):
            self.spend(1)
            position = len(self.masks)
            self.items.append(0)
            self.masks.append(self.sets.mask(node))
            self.follow.append([])
            self.last.append(False)
            return False, (position,), (position,)
        if isinstance(node, Reference):
            return self._build(self.rules[node.name])
        if isinstance(node, Repeat):
            can_be_empty, first, last = self._build(node.item)
            if node.maximum is None or node.maximum > 1:
                self._link(last, first)
            return can_be_empty or node.minimum == 0, first, last
        if isinstance(node, Choice):
            options = [self._build(option) for option in node.options]
            return (
                any(can_be_empty for can_be_empty, _, _ in options),
                tuple(p for _, first, _ in options for p in first),
                tuple(p for _, _, last in options for p in last),
            )
        assert isinstance(node, Sequence), "there are no pieces inside of a piece"
        all_empty = True
        all_first: tuple[int, ...] = ()
        all_last: tuple[int, ...] = ()
        for index, item in enumerate(node.items):
            start = len(self.masks)
            can_be_empty, first, last = self._build(item)
            self.items[start:] = [index] * (len(self.masks) - start)
            self._link(all_last, first)
            all_first = all_first + first if all_empty else all_first
            all_last = all_last + last if can_be_empty else last
            all_empty = all_empty and can_be_empty
            self.spend(len(all_last))
        return all_empty, all_first, all_last

    def _link(self, last: tuple[int, ...], first: tuple[int, ...]) -> None:
        self.spend(len(last))
        for position in last:
            self.follow[position].append(first)


def find_conflicts(
    positions: Positions, lexemes: list[Lexeme], beginning: int
) -> set[tuple[int, int, int]]:
    """Return where a lexeme could swallow what belongs to the next one.

    Args:
        positions: Of all lexemes.
        lexemes: In the order in which they were added.
        beginning: Bits of the lexemes with which an output can begin.

    Returns:
        The lexeme that goes on where it should not, and the items of it that it is in
        before and after.

    Raises:
        OutOfBudgetError: The budget of the positions is spent.
    """
    if not any(lexeme.following for lexeme in lexemes):
        return set()  # one lexeme is all of an output
    masks, owners, last = positions.masks, positions.owners, positions.last
    items = positions.items
    positions.spend(sum(len(part) for parts in positions.follow for part in parts))
    follow = [tuple({p for part in parts for p in part}) for parts in positions.follow]
    longer_by = [_union(masks, part) for part in follow]

    first_of: dict[
        int, tuple[int, ...]
    ] = {}  # by the bits of lexemes; many have the same

    def begin_of(bits: int) -> tuple[int, ...]:
        if bits not in first_of:
            found = tuple(p for lexeme in _bits(bits) for p in lexemes[lexeme].first)
            positions.spend(len(found))
            first_of[bits] = found
        return first_of[bits]

    behind = [begin_of(lexeme.following) for lexeme in lexemes]
    masks_of = {bits: _union(masks, part) for bits, part in first_of.items()}
    behind_by = [masks_of[lexeme.following] for lexeme in lexemes]
    begin = begin_of(beginning)
    conflicts: set[tuple[int, int, int]] = set()
    seen: set[tuple[int, int]] = set()
    joined: set[tuple[int, int]] = set()  # lexemes that end together
    waiting: deque[tuple[tuple[int, ...], tuple[int, ...]]] = deque([(begin, begin)])
    while waiting and not conflicts:  # what lies behind one may be gone without it
        lefts, rights = waiting.popleft()
        positions.spend(len(lefts) * len(rights))
        for left in lefts:
            for right in rights:
                if not masks[left] & masks[right] or (left, right) in seen:
                    continue
                seen.add((left, right))
                seen.add((right, left))
                for done, longer in ((left, right), (right, left)):
                    following = behind_by[owners[done]]
                    if last[done] and longer_by[longer] & following:
                        conflicts |= {
                            (owners[longer], items[longer], items[position])
                            for position in follow[longer]
                            if masks[position] & following
                        }
                waiting.append((follow[left], follow[right]))
                pair = (owners[left], owners[right])
                if last[left] and last[right] and pair not in joined:
                    joined.add(pair)
                    waiting.append((behind[pair[0]], behind[pair[1]]))
    return conflicts


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _union(masks: list[int], positions: tuple[int, ...]) -> int:
    union = 0
    for position in positions:
        union |= masks[position]
    return union
