"""Grammars that say which token may come next: JSON Schema, regex, Lark and GBNF.

The work on the tokens is the library llguidance's. What is here decides what is let through
to it, because it passes over what it does not know, and translates GBNF.
"""

from __future__ import annotations

from pie_trio.inference.grammar.compiling import (
    Grammar,
    GrammarKind,
    compile_grammar,
)
from pie_trio.inference.grammar.matcher import Matcher, fill_masks
from pie_trio.inference.grammar.vocabulary import GrammarVocabulary

__all__ = [
    "Grammar",
    "GrammarKind",
    "GrammarVocabulary",
    "Matcher",
    "compile_grammar",
    "fill_masks",
]
