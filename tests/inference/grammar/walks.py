"""Outputs that follow a grammar, and whether one does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pie_trio.inference.grammar import Grammar, GrammarVocabulary, Matcher

WORDS = (b"ab", b"abc", b"ba", b"aa", b'{"', b'":', b"  ", b"12", b"true", "é".encode())
BYTE_TOKENS = [*(bytes([byte]) for byte in range(256)), *WORDS, b"", b"", b""]
SPECIAL = len(BYTE_TOKENS) - 3
END = SPECIAL + 1


def allowed_tokens(matcher: Matcher) -> list[int]:
    """Return the ids in the mask of a matcher."""
    mask = np.zeros(matcher.vocabulary.num_mask_words, np.uint32)
    matcher.fill_mask(mask)
    return token_ids(mask)


def token_ids(mask: NDArray[np.uint32]) -> list[int]:
    return np.flatnonzero(
        np.unpackbits(mask.view(np.uint8), bitorder="little")
    ).tolist()


def spell(vocabulary: GrammarVocabulary, tokens: Sequence[int]) -> bytes:
    return b"".join(vocabulary.tokens[token] for token in tokens)


def accepts(grammar: Grammar, text: str | bytes) -> bool:
    """Return whether a text, a token for each byte, is all of an output.

    The first 256 tokens of the vocabulary are the bytes.
    """
    data = text.encode() if isinstance(text, str) else text
    matcher = grammar.matcher()
    return matcher.accept(list(data)) == len(data) and matcher.is_accepting


def walk(
    grammar: Grammar, rng: random.Random, *, eager_after: int = 60, limit: int = 3000
) -> list[int] | None:
    """Return the tokens of a random output without its end; None if it did not end.

    Args:
        grammar: To be followed.
        rng: Chooses.
        eager_after: From this number of tokens on, it ends where it may, and prefers what
            closes: brackets, quotes and digits rather than what opens.
        limit: When to give up.
    """
    matcher = grammar.matcher()
    vocabulary = matcher.vocabulary
    tokens: list[int] = []
    while len(tokens) < limit:
        allowed = allowed_tokens(matcher)
        assert allowed, f"nothing may follow {spell(vocabulary, tokens)!r}"
        ends = [token for token in allowed if token in vocabulary.eos_token_ids]
        others = [token for token in allowed if token not in vocabulary.eos_token_ids]
        is_eager = len(tokens) >= eager_after
        if ends and (is_eager or not others or rng.random() < 0.2):
            return tokens
        token = _choose(vocabulary, others, rng, is_eager=is_eager)
        assert matcher.accept([token]) == 1, "what the mask has is accepted"
        tokens.append(token)
    return None


def _choose(
    vocabulary: GrammarVocabulary,
    tokens: list[int],
    rng: random.Random,
    *,
    is_eager: bool,
) -> int:
    if is_eager:
        for wanted in (b'"', b"}", b"]", b":", b",", b"0", b"1"):
            for token in tokens:
                if vocabulary.tokens[token] == wanted:
                    return token
        return tokens[0] if rng.random() < 0.5 else rng.choice(tokens)
    # Of the thousands that a string allows, few look like the rest of a document.
    short = [token for token in tokens if len(vocabulary.tokens[token]) == 1]
    return rng.choice(short if short and rng.random() < 0.5 else tokens)
