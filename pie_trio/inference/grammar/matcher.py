"""Where one sequence of tokens stands in its grammar, and the masks of many of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pie_trio.errors import GrammarError
from pie_trio.inference.grammar.messages import explain

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from llguidance import LLMatcher
    from numpy.typing import NDArray

    from pie_trio.inference.grammar.vocabulary import GrammarVocabulary

__all__ = ["MAX_STEP_SECONDS", "Matcher", "fill_masks"]

MAX_STEP_SECONDS = 0.5
"""CPU time to accept one token: for an ambiguous grammar it grows with the output.

llguidance bounds the work for a mask, and not this.
"""


class Matcher:
    """The state of one output; at first the empty one. Not for two threads at once.

    A grammar can be so ambiguous that a step takes more work than llguidance is allowed.
    Then the call raises :class:`~pie_trio.errors.GrammarError`, and so does each later one.

    Attributes:
        vocabulary: What the masks are masks of.
        library: The state, as llguidance has it.
    """

    def __init__(
        self, library: LLMatcher, vocabulary: GrammarVocabulary, *, is_empty: bool
    ) -> None:
        """Take over a matcher of llguidance that has accepted nothing yet.

        Args:
            library: Ours from now on.
            vocabulary: That of ``library``.
            is_empty: Whether the empty output is the only one, which llguidance tells only
                of outputs that have begun.
        """
        self.library = library
        self.vocabulary = vocabulary
        self._is_empty = is_empty
        self._num_tokens = 0  # without the end tokens, which llguidance never sees
        self._num_ends = 0
        self._slowest = 0.0  # seconds of CPU

    @property
    def num_accepted(self) -> int:
        """Tokens accepted and not rolled back."""
        return self._num_tokens + self._num_ends

    @property
    def has_ended(self) -> bool:
        """Whether an end token was accepted."""
        return self._num_ends > 0

    @property
    def is_accepting(self) -> bool:
        """Whether the output may end here."""
        is_accepting = self.library.is_accepting()
        self._check()
        return is_accepting

    @property
    def is_finished(self) -> bool:
        """Whether nothing but an end token can follow, or one has come already."""
        self._check()
        return self._is_empty or self._num_ends > 0 or self.library.is_stopped()

    def accept(self, tokens: Sequence[int]) -> int:
        """Go on by the tokens up to the first one that the grammar does not allow.

        After an end token only end tokens are allowed.

        Returns:
            How many were accepted; the state is the one after exactly these.

        Raises:
            GrammarError: The grammar takes too much work here.
        """
        for index, token in enumerate(tokens):
            if not self._accept(int(token)):
                return index
        return len(tokens)

    def rollback(self, num_tokens: int) -> None:
        """Take back the last tokens that were accepted.

        Raises:
            ValueError: There are not so many.
        """
        if not 0 <= num_tokens <= self.num_accepted:
            raise ValueError(
                f"expected to take back 0 to {self.num_accepted} tokens, got {num_tokens}"
            )
        num_ends = min(num_tokens, self._num_ends)
        if num_tokens > num_ends:
            self.library.rollback(num_tokens - num_ends)
            self._check()
        self._num_ends -= num_ends
        self._num_tokens -= num_tokens - num_ends

    def fork(self) -> Matcher:
        """Return a matcher in the same state that goes its own way."""
        copy = self.library.deep_copy()
        twin = Matcher(copy, self.vocabulary, is_empty=self._is_empty)
        twin._num_tokens, twin._num_ends = self._num_tokens, self._num_ends
        twin._slowest = self._slowest
        return twin

    def fill_mask(self, out: NDArray[np.uint32]) -> None:
        """Write the tokens that are allowed next, without the GIL.

        Args:
            out: ``[ceil(vocab_size / 32)]`` uint32, contiguous; bit ``i % 32`` of word
                ``i // 32`` becomes 1 where token ``i`` is allowed. Bits past the
                vocabulary become 0.

        Raises:
            GrammarError: The grammar takes too much work here.
            ValueError: ``out`` has another shape or type.
        """
        fill_masks([self], out[None])

    def _accept(self, token: int) -> bool:
        """Accept one token if it is allowed."""
        vocabulary = self.vocabulary
        if token in vocabulary.eos_token_ids:
            if not (self._num_ends or self.is_accepting):
                return False
            self._num_ends += 1
            return True
        # llguidance takes an id out of range, or one that spells nothing, for a fault.
        if self._num_ends or not (
            0 <= token < vocabulary.vocab_size and vocabulary.tokens[token]
        ):
            return False
        start = time.thread_time()
        num_accepted = self.library.try_consume_tokens([token])
        self._slowest = max(self._slowest, time.thread_time() - start)
        self._check()
        self._num_tokens += num_accepted
        return num_accepted == 1

    def failure(self) -> str:
        """Return why nothing more can be done, or nothing."""
        if self._slowest > MAX_STEP_SECONDS:
            return (
                f"a token took {self._slowest:.1f} s, more than {MAX_STEP_SECONDS} s: make "
                "the grammar less ambiguous"
            )
        library = self.library
        return explain(library.get_error()) if library.is_error() else ""

    def _check(self) -> None:
        if failure := self.failure():
            raise GrammarError(failure)


def fill_masks(matchers: Sequence[Matcher], out: NDArray[np.uint32]) -> None:
    """Write the masks of matchers of one vocabulary, in parallel and without the GIL.

    Args:
        matchers: One for each row; the same one may come twice.
        out: ``[num_matchers, ceil(vocab_size / 32)]`` uint32, contiguous; see
            :meth:`Matcher.fill_mask`.

    Raises:
        GrammarError: Some grammars take too much work here; ``rows`` says which. The other
            rows are filled.
        ValueError: ``out`` has another shape or type.
    """
    if not matchers:
        return
    vocabulary = matchers[0].vocabulary
    shape = (len(matchers), vocabulary.num_mask_words)
    if out.shape != shape or out.dtype.str != "<u4" or not out.flags.c_contiguous:
        raise ValueError(
            f"expected contiguous uint32 masks of shape {shape}, got {out.dtype} of shape "
            f"{out.shape}"
        )
    first_row: dict[int, int] = {}
    work: list[tuple[LLMatcher, int]] = []
    for row, matcher in enumerate(matchers):
        if matcher.has_ended:
            out[row] = 0
            for token_id in vocabulary.eos_token_ids:
                out[row, token_id // 32] |= 1 << (token_id % 32)
        elif first_row.setdefault(id(matcher), row) == row:
            work.append((matcher.library, row))
    if work:  # llguidance borrows each matcher for the whole call, so only once
        vocabulary.executor.unsafe_compute_mask_ptr(
            work, out.ctypes.data, 4 * vocabulary.num_mask_words, len(matchers)
        )
    failures: dict[int, str] = {}
    for row, matcher in enumerate(matchers):
        if matcher.has_ended:
            continue
        if first_row[id(matcher)] != row:
            out[row] = out[first_row[id(matcher)]]
        if failure := matcher.failure():  # after one, llguidance allows the end
            failures[row] = failure
    if failures:
        raise GrammarError(next(iter(failures.values())), rows=tuple(failures))
