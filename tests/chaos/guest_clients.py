"""Clients of instances: they read at their own speed, and go away when they like."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from pie_trio.application.server.running import RunningInstance


class GuestClient:
    """A client that reads the events of an instance until it leaves.

    Args:
        instance: Whose.
        after: Number of the event after which it begins.
        permits: How many times it reads before it waits for more.

    Attributes:
        is_holder: It launched the instance, which waits for it.
        has_ended: It has read the end, or has left.
    """

    def __init__(
        self,
        instance: RunningInstance,
        *,
        after: int = 0,
        permits: float = math.inf,
        is_holder: bool = False,
    ) -> None:
        self.instance, self._after, self._permits = instance, after, permits
        self.is_holder, self.has_ended = is_holder, False
        self._scope = trio.CancelScope()
        self._permitted = trio.Event()
        self._last: tuple[int, str] | None = None

    def permit(self, count: float) -> None:
        """Let it read so many times more."""
        self._permits += count
        self._permitted.set()

    def leave(self) -> None:
        """Go away where it stands."""
        self._scope.cancel()

    async def run(self) -> None:
        """Read until the end of the events, and check that none is missing."""
        try:
            with self._scope, self.instance.attach(self._after) as reader:
                async for batch in reader:
                    self._check_order(
                        batch.num_lost, [(e.number, e.kind) for e in batch.events]
                    )
                    await self._wait_permit()
                is_late = self._last is None and self._after  # there was the end
                assert is_late or (self._last or (0, ""))[1] == "end", self._last
        finally:
            self.has_ended = True

    def _check_order(self, num_lost: int, events: list[tuple[int, str]]) -> None:
        before = self._after if self._last is None else self._last[0]
        assert events[0][0] == before + num_lost + 1, (
            f"{events[0]} comes after {before}, and {num_lost} were lost"
        )
        numbers = [number for number, _ in events]
        assert numbers == [*range(numbers[0], numbers[0] + len(numbers))], numbers
        assert not (self.is_holder and num_lost), f"its client lost {num_lost} events"
        self._last = events[-1]

    async def _wait_permit(self) -> None:
        while self._permits < 1:
            self._permitted = trio.Event()
            await self._permitted.wait()
        self._permits -= 1
