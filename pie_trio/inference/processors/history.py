"""The tokens of a sequence, how often each is among the latest, and what repeats."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pie_trio.engine_api import MAX_DRY_LENGTH

if TYPE_CHECKING:
    from collections.abc import Iterable, Set

    from numpy.typing import NDArray

__all__ = ["History", "repetition_lengths"]


class History:
    """Tokens that can be appended and taken back.

    Args:
        tokens: The first ones.
        window: How many of the latest are counted; 0 for all.

    Attributes:
        counts: How often each token is in the window; those that are not have no entry.
    """

    def __init__(self, tokens: Iterable[int], *, window: int) -> None:
        self._tokens = np.array(list(tokens), np.int32)
        self._length = len(self._tokens)
        self._window = window
        self.counts: dict[int, int] = {}
        for token in self.latest().tolist():
            self._add(token)

    def __len__(self) -> int:
        return self._length

    def latest(self) -> NDArray[np.int32]:
        """Return the tokens in the window, in order; valid until the next change."""
        first = max(self._length - self._window, 0) if self._window else 0
        return self._tokens[first : self._length]

    def append(self, token: int) -> None:
        """Add a token."""
        if self._length == len(self._tokens):
            self._tokens = np.resize(self._tokens, max(2 * self._length, 32))
        self._tokens[self._length] = token
        self._length += 1
        self._add(token)
        if self._window and self._length > self._window:
            self._remove(int(self._tokens[self._length - self._window - 1]))

    def take_back(self, count: int) -> None:
        """Remove the latest tokens; there are so many."""
        for _ in range(count):
            self._length -= 1
            self._remove(int(self._tokens[self._length]))
            if self._window and self._length >= self._window:
                self._add(int(self._tokens[self._length - self._window]))

    def fork(self) -> History:
        """Return a copy."""
        twin = History((), window=self._window)
        twin._tokens, twin._length = self._tokens[: self._length].copy(), self._length
        twin.counts = self.counts.copy()
        return twin

    def _add(self, token: int) -> None:
        self.counts[token] = self.counts.get(token, 0) + 1

    def _remove(self, token: int) -> None:
        count = self.counts[token] - 1
        if count:
            self.counts[token] = count
        else:
            del self.counts[token]


def repetition_lengths(tokens: NDArray[np.int32], breakers: Set[int]) -> dict[int, int]:
    """Return, for each token that would prolong a repetition, how long that is by now.

    A repetition of length ``n`` is that the last ``n`` tokens stand somewhere before as well;
    what stood behind them there would prolong it. See p-e-w 2024,
    https://github.com/oobabooga/text-generation-webui/pull/5677.

    Args:
        tokens: ``[num_tokens]`` int32.
        breakers: Tokens that are in no repetition, and prolong none.

    Returns:
        The length of the longest repetition, at most :data:`MAX_DRY_LENGTH`, by token id.
    """
    last = len(tokens) - 1
    if last < 1 or int(tokens[last]) in breakers:
        return {}
    ends = np.flatnonzero(tokens[:last] == tokens[last])  # where repetitions may end
    length_at = np.zeros(last, np.int64)
    for length in range(1, min(last, MAX_DRY_LENGTH) + 1):
        length_at[ends] = length
        if not len(ends) or int(tokens[last - length]) in breakers:
            break
        ends = ends[ends >= length]
        ends = ends[tokens[ends - length] == tokens[last - length]]
    ends = np.flatnonzero(length_at)
    ends = ends[
        np.argsort(length_at[ends], kind="stable")
    ]  # of a token, the longest wins
    pairs = zip(tokens[ends + 1].tolist(), length_at[ends].tolist(), strict=True)
    lengths: dict[int, int] = dict(pairs)
    for breaker in breakers & lengths.keys():
        del lengths[breaker]
    return lengths
