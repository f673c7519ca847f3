"""A clock that jumps to the next deadline as soon as nothing else can happen."""

from __future__ import annotations

import math
import time

import trio

__all__ = ["VirtualClock"]

QUIET_SECONDS = 0.003
FOREVER = 86400.0


class VirtualClock(trio.abc.Clock, trio.abc.Instrument):
    """Virtual seconds from 0; pass it to ``trio.run`` as clock and as instrument.

    It does not jump while it is held, and only after nobody did anything for some milliseconds
    of real time: a thread may be at work that trio does not tell of.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._num_holds = 0
        self._quiet_since: float | None = None

    def start_clock(self) -> None:
        """Do nothing: it stands at 0."""

    def current_time(self) -> float:
        """Return virtual seconds."""
        return self._now

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Note that something happens."""
        self._quiet_since = None

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Return how long trio may sleep; it asks when no task can run."""
        if self._num_holds or math.isinf(deadline):
            return FOREVER
        if deadline <= self._now:
            return 0.0
        now = time.perf_counter()
        if self._quiet_since is None:
            self._quiet_since = now
        left = self._quiet_since + QUIET_SECONDS - now
        if left > 0:
            return left
        self._now, self._quiet_since = deadline, None
        return 0.0

    def hold(self) -> None:
        """Stand still, whatever is due: the program computes outside of trio."""
        self._num_holds += 1

    def release(self) -> None:
        """Take back one :meth:`hold`."""
        self._num_holds -= 1
