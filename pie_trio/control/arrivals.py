"""Who is about to submit: what a batching policy may wait for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Arrivals"]


class Arrivals:
    """The inferlets that were resumed and have neither submitted nor blocked since.

    Args:
        on_settled: Called when nobody is expected any more.
        now: The time, on trio's clock.

    Attributes:
        settled_at: When the latest of those that were expected had settled, on trio's clock.
    """

    def __init__(
        self,
        on_settled: Callable[[], None] = lambda: None,
        now: Callable[[], float] = trio.current_time,
    ) -> None:
        self.on_settled, self._now = on_settled, now
        self.settled_at = float("-inf")
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
        self._expected[inferlet] = None

    def settle(self, inferlet: str) -> None:
        """Note that ``inferlet`` waits again, has used up its slice, or has ended."""
        if inferlet in self._expected:
            del self._expected[inferlet]
            self.settled_at = self._now()
            if not self._expected:
                self.on_settled()

    def forget(self) -> None:
        """Wait for nobody who is late: whoever computes for long is expected when it waits."""
        self._expected.clear()
