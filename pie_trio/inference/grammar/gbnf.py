"""GBNF, the notation of llama.cpp, as a grammar in llguidance's Lark."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pie_trio.errors import GrammarError
from pie_trio.inference.grammar.gbnf_ast import (
    Characters,
    Choice,
    Node,
    Piece,
    Reference,
    Repeat,
    Sequence,
)
from pie_trio.inference.grammar.gbnf_lexemes import MAX_STEPS, cut_into_lexemes
from pie_trio.inference.grammar.gbnf_parser import ROOT, parse_gbnf
from pie_trio.inference.grammar.gbnf_rules import without_dead_ends

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["gbnf_to_lark"]


def gbnf_to_lark(text: str, *, max_steps: int = MAX_STEPS) -> str:
    """Return a Lark grammar that matches the same outputs.

    Args:
        text: In GBNF.
        max_steps: How long to look for the largest lexemes; with 0 each character is one.

    Raises:
        GrammarError: The text is malformed, and the message has line and column; or no
            output comes to an end.
    """
    parsed = without_dead_ends(parse_gbnf(text))
    if ROOT not in parsed:
        raise GrammarError(
            f"gbnf: no output comes to an end: each way through {ROOT} leads back into it"
        )
    rules, inner_rules = cut_into_lexemes(parsed, max_steps=max_steps)
    writer = _Writer(inner_rules)
    lines = [f"{_rule(name)}: {writer.write(node)}" for name, node in rules.items()]
    return "\n".join([f"start: {_rule(ROOT)}", *lines, *writer.terminals()])


class _Writer:
    """Writes nodes in Lark; what is one lexeme gets a name of its own."""

    def __init__(self, rules: Mapping[str, Node]) -> None:
        self._rules = rules
        self._lexemes: dict[str, str] = {}  # names by definition
        self._definitions: dict[str, str] = {}  # of the rules that lexemes refer to

    def terminals(self) -> list[str]:
        """Return the definitions of everything that was written so far."""
        lexemes = [f"{name}: {text}" for text, name in self._lexemes.items()]
        return lexemes + [f"{n}: {text}" for n, text in self._definitions.items()]

    def write(self, node: Node, *, is_inside: bool = False) -> str:
        """Return a node as an operand.

        Args:
            node: Of a rule over lexemes, or of a lexeme.
            is_inside: Which of them.
        """
        if isinstance(node, Piece):
            text = self.write(node.inner, is_inside=True)
            return self._lexemes.setdefault(text, f"L_{len(self._lexemes)}")
        if isinstance(node, Characters):
            return f"/[{_ranges(node)}]/"
        if isinstance(node, Reference):
            return self._inner_rule(node.name) if is_inside else _rule(node.name)
        if isinstance(node, Repeat):
            item = self.write(node.item, is_inside=is_inside)
            return f"({item}){_bounds(node)}"
        if isinstance(node, Choice):
            options = [
                self.write(option, is_inside=is_inside) for option in node.options
            ]
            return f"({' | '.join(options)})"
        if (literal := _literal(node)) is not None:
            return literal
        return f"({' '.join(self.write(n, is_inside=is_inside) for n in node.items)})"

    def _inner_rule(self, name: str) -> str:
        """Return the name of a rule that is a part of lexemes."""
        terminal = _part(name)
        if terminal not in self._definitions:
            self._definitions[terminal] = ""
            self._definitions[terminal] = self.write(self._rules[name], is_inside=True)
        return terminal


def _literal(node: Sequence) -> str | None:
    """Return a sequence of single plain characters as a string, else None."""
    text = ""
    for item in node.items:
        ranges = item.ranges if isinstance(item, Characters) else ()
        if len(ranges) != 1 or ranges[0][0] != ranges[0][1]:
            return None
        text += chr(ranges[0][0])
    return json.dumps(text) if text.isascii() and text.isprintable() else None


def _ranges(node: Characters) -> str:
    return "".join(f"\\u{{{first:X}}}-\\u{{{last:X}}}" for first, last in node.ranges)


def _bounds(node: Repeat) -> str:
    if node.maximum is None:
        return ("*", "+")[node.minimum] if node.minimum < 2 else f"{{{node.minimum},}}"
    is_optional = (node.minimum, node.maximum) == (0, 1)
    return "?" if is_optional else f"{{{node.minimum},{node.maximum}}}"


def _rule(name: str) -> str:
    """Return a name that Lark takes for a rule; different ones stay different."""
    return "r_" + "".join(
        c if c.islower() or c.isdigit() else f"_{ord(c):x}_" for c in name
    )


def _part(name: str) -> str:
    """Return a name that Lark takes for a terminal."""
    return _rule(name).upper()
