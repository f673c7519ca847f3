"""Who is about to submit: what a batching policy may wait for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Arrivals"]

TURN_SMOOTHING = 0.05
"""Weight of the newest turn in the running mean: one in many takes far longer."""


class Arrivals:
    """The inferlets that were resumed and have neither submitted nor blocked since.

    Args:
        on_settled: Called when nobody is expected any more.
        now: The time, on trio's clock.

    Attributes:
        settled_at: When the latest of those that were expected had settled, on trio's clock.
        turn_seconds: Running mean of the time from one that settles to the next: they take turns.
    """

    def __init__(
        self,
        on_settled: Callable[[], None] = lambda: None,
        now: Callable[[], float] = trio.current_time,
    ) -> None:
        self.on_settled, self._now = on_settled, now
        self.settled_at = float("-inf")
        self.turn_seconds = 0.0
        self._turn_began_at: float | None = None
        self._expected: dict[str, None] = {}

    @property
    def num_expected(self) -> int:
        """How many inferlets are about to submit."""
        return len(self._expected)

    @property
    def expected(self) -> Iterable[str]:
        """Names of the inferlets that are about to submit."""
        return self._expected

    def expect(self, inferlet: str) -> None:
        """Note that a wait of ``inferlet`` is over: it will run next."""
        if not self._expected:
            self._turn_began_at = self._now()
        self._expected[inferlet] = None

    def settle(self, inferlet: str) -> None:
        """Note that ``inferlet`` waits again, has used up its slice, or has ended."""
        if inferlet in self._expected:
            del self._expected[inferlet]
            self.settled_at = now = self._now()
            if self._turn_began_at is not None:
                elapsed = now - self._turn_began_at
                self.turn_seconds += TURN_SMOOTHING * (elapsed - self.turn_seconds)
            self._turn_began_at = now if self._expected else None
            if not self._expected:
                self.on_settled()

    def forget(self) -> None:
        """Wait for nobody who is late: whoever computes for long is expected when it waits."""
        self._expected.clear()
        self._turn_began_at = None
