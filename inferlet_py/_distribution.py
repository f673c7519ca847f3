"""What may come next: the most likely tokens and their probabilities."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Distribution"]


@dataclass(frozen=True)
class Distribution:
    """The most likely tokens, in descending order.

    Attributes:
        token_ids: The tokens.
        probs: Their probabilities under the softmax at temperature 1; they sum to at most 1.
    """

    token_ids: Sequence[int]
    probs: Sequence[float]

    def __len__(self) -> int:
        return len(self.token_ids)

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return iter(zip(self.token_ids, self.probs, strict=True))

    def argmax(self) -> int:
        """Return the most likely token."""
        return self.token_ids[0]

    def prob(self, token_id: int) -> float:
        """Return the probability of a token; 0 if it is not among the most likely."""
        for candidate, prob in self:
            if candidate == token_id:
                return prob
        return 0.0

    def sample(self, rng: random.Random | None = None) -> int:
        """Draw a token, as if the ones that are not listed did not exist."""
        return (rng or random).choices(self.token_ids, self.probs)[0]
