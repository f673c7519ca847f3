"""From the text of a grammar to matchers: one notation for llguidance, and its limits."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from pie_trio.errors import GrammarError
from pie_trio.inference.grammar.gbnf import gbnf_to_lark
from pie_trio.inference.grammar.json_schema import check_json_schema
from pie_trio.inference.grammar.lark import check_lark
from pie_trio.inference.grammar.matcher import Matcher
from pie_trio.inference.grammar.messages import explain

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from pie_trio.inference.grammar.vocabulary import GrammarVocabulary

__all__ = [
    "MAX_TEXT_LENGTHS",
    "Grammar",
    "GrammarKind",
    "compile_grammar",
    "compile_lark",
]

GrammarKind = Literal["json-schema", "regex", "lark", "gbnf"]

MAX_TEXT_LENGTHS: dict[GrammarKind, int] = {
    "json-schema": 128 * 1024,
    "regex": 32 * 1024,
    "lark": 32 * 1024,
    "gbnf": 32 * 1024,
}
"""Characters of a grammar's text; with them the worst that we found compiles in seconds."""

MAX_ITEMS_IN_ROW = 4_000
"""Ways on at one place; an object has four for each of its optional properties.

llguidance's own limit, 2,000, is too low for wide objects. The other limits are its own:
they keep a mask below a quarter of a second, and most below 20 ms.
"""

STACK_BYTES = 256 * 2**20
"""llguidance goes down one rule or reference after the other, and has no limit of its own.

A chain of 1,000 schemas needs more than the 8 MiB of an ordinary thread, and would end the
process. The longest that a text of the lengths above can hold needs less than this. Memory
is used only as far as the stack goes.
"""

# Without it, llguidance allows only its own tokenization of text that a grammar forces, which
# needs a tokenizer, and makes masks narrower than what is accepted.
_OPTIONS = '%llguidance {"no_forcing": true}'


class Grammar:
    """A compiled grammar; any number of outputs can follow it at once."""

    def __init__(
        self, kind: GrammarKind, library: LLMatcher, vocabulary: GrammarVocabulary
    ) -> None:
        """Take over a matcher of llguidance that has accepted nothing yet.

        Raises:
            GrammarError: No output matches.
        """
        self.kind = kind
        self.vocabulary = vocabulary
        self._library = library
        self._is_empty = False
        mask = np.zeros(vocabulary.num_mask_words, np.uint32)
        self.matcher().fill_mask(mask)
        for token_id in vocabulary.eos_token_ids:
            mask[token_id // 32] &= ~np.uint32(1 << (token_id % 32))
        self._is_empty = not mask.any()

    def matcher(self) -> Matcher:
        """Return a matcher of an output that is empty yet."""
        library = self._library.deep_copy()
        return Matcher(library, self.vocabulary, is_empty=self._is_empty)


def compile_grammar(
    kind: GrammarKind, text: str, vocabulary: GrammarVocabulary
) -> Grammar:
    """Compile a grammar.

    It blocks, without the GIL where llguidance is at work: call it in a thread.

    Args:
        kind: The notation of ``text``.
        text: The whole output must match it.
        vocabulary: Of the model that is to follow it.

    Raises:
        GrammarError: The text is malformed, too large, uses what is not supported, or no
            output matches it.
    """
    if kind not in get_args(GrammarKind):
        raise GrammarError(
            f"expected a grammar of the kind {', '.join(get_args(GrammarKind))}, got {kind!r}"
        )
    if len(text) > MAX_TEXT_LENGTHS[kind]:
        raise GrammarError(
            f"{kind}: expected at most {MAX_TEXT_LENGTHS[kind]} characters, but there are "
            f"{len(text)}: make the grammar smaller"
        )
    if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in text):
        raise GrammarError(
            f"{kind}: expected text, but it holds NUL or half of a surrogate pair: remove it"
        )
    try:
        lark = _to_lark(kind, text)
    except RecursionError as error:
        raise GrammarError(
            f"{kind}: rules lead to rules, or brackets are in brackets, hundreds of times: "
            "make the grammar flatter"
        ) from error
    return compile_lark(kind, lark, vocabulary)


def compile_lark(
    kind: GrammarKind, lark: str, vocabulary: GrammarVocabulary
) -> Grammar:
    """Compile what was translated and checked already.

    Raises:
        GrammarError: llguidance cannot do it, or no output matches.
    """
    library = _compile_on_large_stack(f"{lark}\n{_OPTIONS}\n", vocabulary)
    if library.is_error():
        num_lines = lark.count("\n") + 1 if kind == "lark" else 0
        message = explain(library.get_error(), num_lines=num_lines)
        raise GrammarError(f"{kind}: {message}")
    try:
        return Grammar(kind, library, vocabulary)
    except GrammarError as error:
        raise GrammarError(
            f"{kind}: no output can begin ({error}): does anything match the grammar?"
        ) from error


def _to_lark(kind: GrammarKind, text: str) -> str:
    """Return a grammar in the one notation that everything is compiled from."""
    from llguidance import regex_to_lark

    if kind == "json-schema":
        return f"start: %json {check_json_schema(text)}"
    if kind == "regex":
        if (len(text) - len(text.rstrip("\\"))) % 2:
            raise GrammarError("regex: there is nothing behind the last backslash")
        return f"start: /{regex_to_lark(text, '')}/" if text else 'start: ""'
    return check_lark(text) if kind == "lark" else gbnf_to_lark(text)


def _compile_on_large_stack(lark: str, vocabulary: GrammarVocabulary) -> LLMatcher:
    from llguidance import LLMatcher, LLParserLimits

    compiled: list[LLMatcher] = []

    def run() -> None:
        limits = LLParserLimits(max_items_in_row=MAX_ITEMS_IN_ROW, verbose_errors=False)
        compiled.append(LLMatcher(vocabulary.library, lark, log_level=0, limits=limits))

    # The size is that of all threads to come: another that starts just now gets it too,
    # which does no harm.
    before = threading.stack_size(STACK_BYTES)
    try:
        thread = threading.Thread(target=run, name="grammar compiler")
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    return compiled[0]
