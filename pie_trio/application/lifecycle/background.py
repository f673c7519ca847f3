"""Guests that compute for long: they share a small part of a core while others want to run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BackgroundShare"]


class BackgroundShare:
    """Lets preempted guests go on one after the other.

    Args:
        share: Part of a core for all of them together while ``is_contended()``; with nobody else
            at work they get all of it.
        slice_seconds: How long a guest computes before it is preempted.
        is_contended: Whether the device or another inferlet is at work.
    """

    def __init__(
        self, *, share: float, slice_seconds: float, is_contended: Callable[[], bool]
    ) -> None:
        self._pause_seconds = slice_seconds * (1 / share - 1)
        self._is_contended = is_contended
        self._turn = trio.Lock()  # first come, first served

    async def wait_turn(self) -> None:
        """Return when the caller may compute for one more slice."""
        async with self._turn:
            if self._is_contended():
                await trio.sleep(self._pause_seconds)
            else:
                await trio.lowlevel.checkpoint()
