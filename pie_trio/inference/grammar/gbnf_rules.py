"""What can be said of the rules of a GBNF grammar: which are recursive, and which need not be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pie_trio.inference.grammar.gbnf_ast import (
    Choice,
    Node,
    Reference,
    Repeat,
    Sequence,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "children",
    "nodes_of",
    "recursive_rules",
    "references",
    "without_dead_ends",
    "without_tail_recursion",
]


def children(node: Node) -> tuple[Node, ...]:
    """Return the nodes right below one; a reference has none."""
    if isinstance(node, Sequence):
        return node.items
    if isinstance(node, Choice):
        return node.options
    return (node.item,) if isinstance(node, Repeat) else ()


def nodes_of(node: Node) -> Iterator[Node]:
    """Yield a node and everything below it, from left to right."""
    waiting = [node]
    while waiting:
        current = waiting.pop()
        yield current
        waiting += reversed(children(current))


def references(node: Node) -> Iterator[str]:
    """Yield the name of each reference in a node."""
    return (part.name for part in nodes_of(node) if isinstance(part, Reference))


def recursive_rules(rules: Mapping[str, Node]) -> set[str]:
    """Return the rules that lead to one that leads to itself: these are not regular."""
    users = _users(rules)
    # What refers to nothing but regular rules is regular.
    num_waiting = {name: len(set(references(node))) for name, node in rules.items()}
    ready = [name for name, number in num_waiting.items() if number == 0]
    regular: set[str] = set()
    while ready:
        name = ready.pop()
        regular.add(name)
        for user in users[name]:
            num_waiting[user] -= 1
            if num_waiting[user] == 0:
                ready.append(user)
    return set(rules) - regular


def _users(rules: Mapping[str, Node]) -> dict[str, set[str]]:
    """Return which rules refer to each."""
    users: dict[str, set[str]] = {name: set() for name in rules}
    for name, node in rules.items():
        for other in references(node):
            users[other].add(name)
    return users


def without_dead_ends(rules: Mapping[str, Node]) -> dict[str, Node]:
    """Return the rules without the ways that never come to an end, as ``r ::= "a" r``.

    Rules that have no other way are left out.
    """
    users = _users(rules)
    ending: set[str] = set()
    waiting = list(rules)
    while waiting:
        name = waiting.pop()
        if name not in ending and _ending(rules[name], ending) is not None:
            ending.add(name)
            waiting += users[name]
    parts = {name: _ending(node, ending) for name, node in rules.items()}
    return {name: node for name, node in parts.items() if node is not None}


def _ending(node: Node, ending: set[str]) -> Node | None:
    """Return what remains of a node if only some rules come to an end."""
    if isinstance(node, Reference):
        return node if node.name in ending else None
    if isinstance(node, Repeat):
        item = _ending(node.item, ending)
        if item is None:
            return None if node.minimum else Sequence(())
        return Repeat(item, node.minimum, node.maximum)
    if isinstance(node, Choice):
        parts = [_ending(option, ending) for option in node.options]
        options = [part for part in parts if part is not None]
        return _choice(options) if options else None
    if isinstance(node, Sequence):
        parts = [_ending(item, ending) for item in node.items]
        items = [part for part in parts if part is not None]
        return Sequence(tuple(items)) if len(items) == len(parts) else None
    return node


def without_tail_recursion(name: str, node: Node) -> Node:
    """Return a rule that repeats where it referred to itself first or last, else itself.

    ``r ::= a r | b`` is ``a* b``, and ``r ::= r a | b`` is ``b a*``. Repetitions can become
    part of a lexeme; and llguidance takes long for recursion at the end.
    """
    options = [_items(option) for option in _options(node)]
    for is_last in (True, False):
        inner: list[Node] = []
        outer: list[Node] = []
        for items in options:
            place = items[-1 if is_last else 0] if items else None
            if isinstance(place, Reference) and place.name == name:
                inner.append(Sequence(items[:-1] if is_last else items[1:]))
            else:
                outer.append(Sequence(items))
        if not inner or not outer or any(name in references(n) for n in inner + outer):
            continue
        again = Repeat(_choice(inner), 0, None)
        parts = (again, _choice(outer)) if is_last else (_choice(outer), again)
        return Sequence(parts)
    return node


def _options(node: Node) -> list[Node]:
    """Return the ways to match a node, as far as they can be seen at its top."""
    if isinstance(node, Choice):
        return [inner for option in node.options for inner in _options(option)]
    if isinstance(node, Repeat) and (node.minimum, node.maximum) == (0, 1):
        return [*_options(node.item), Sequence(())]
    return [node]


def _items(node: Node) -> tuple[Node, ...]:
    return node.items if isinstance(node, Sequence) else (node,)


def _choice(nodes: list[Node]) -> Node:
    return nodes[0] if len(nodes) == 1 else Choice(tuple(nodes))
