"""Guests that compute for long: they share a small part of a core while others want to run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BackgroundShare", "Credit"]

MAX_CREDIT = 10
"""Slices that an inferlet may compute before it counts as one that computes for long.

A launch on a slow machine takes one or two, parsing a long text a few: to hold these back would
cost their inferlets many steps.
"""


class Credit:
    """What one inferlet may compute without being held back."""

    __slots__ = ("slices", "updated_at")

    def __init__(self) -> None:
        self.slices = float(MAX_CREDIT)
        self.updated_at = -math.inf


class BackgroundShare:
    """Lets preempted guests go on one after the other.

    Who has credit goes on as soon as everybody else had a turn. The others share a small part
    of a core, at which rate credit also comes back while they do something else.

    Args:
        share: Part of a core for all of them together while ``is_contended()``; with nobody else
            at work they get all of it.
        slice_seconds: How long a guest computes before it is preempted.
        is_contended: Whether the device or another inferlet is at work.
    """

    def __init__(
        self, *, share: float, slice_seconds: float, is_contended: Callable[[], bool]
    ) -> None:
        self._credit_per_second = share / slice_seconds
        self._pause_seconds = slice_seconds * (1 / share - 1)
        self._is_contended = is_contended
        # First come, first served. One of each at a time, so that however many compute, the
        # batcher waits for a slice or two.
        self._turn, self._turn_of_others = trio.Lock(), trio.Lock()

    async def wait_turn(self, credit: Credit) -> None:
        """Return when the caller, whose slice is over, may compute for one more."""
        earned = (trio.current_time() - credit.updated_at) * self._credit_per_second
        slices = min(MAX_CREDIT, credit.slices + earned)
        credit.slices = max(0.0, slices - 1)
        if slices >= 1:
            async with self._turn:
                await trio.lowlevel.checkpoint()
        else:
            async with self._turn_of_others:
                if self._is_contended():
                    await trio.sleep(self._pause_seconds)
                else:
                    await trio.lowlevel.checkpoint()
        # From here on, or many that wait for their turns would all earn meanwhile.
        credit.updated_at = trio.current_time()
