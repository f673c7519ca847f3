"""Time and randomness of a program that runs in this Python, through a tap.

In Wasm these are WASI's functions, and what is recorded has the same names: a run that was
recorded there can be replayed here. What C code of Python reads by itself is not seen:
``datetime.now()``, and the seed of a ``random.Random()`` without one.
"""

from __future__ import annotations

import os
import random
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from pie_trio.application.recording.taps import (
    MONOTONIC_CLOCK,
    RANDOM,
    SLEEP,
    WALL_CLOCK,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from pie_trio.application.recording.taps import Tap

__all__ = ["NativeSystem"]

SEED_BYTES = 16
"""A guest takes so many when it starts."""
NANOSECONDS = 10**9


class NativeSystem:
    """Clocks and random bytes of one thread, through a tap, in its blocks.

    Args:
        tap: In between.
        random_bytes: Where random bytes come from if the tap has none.
    """

    def __init__(
        self, tap: Tap, random_bytes: Callable[[int], bytes] = os.urandom
    ) -> None:
        self._tap, self._random_bytes = tap, random_bytes
        self._owner = threading.get_ident()
        self._wall, self._monotonic = time.time_ns, time.monotonic_ns
        self._sleep = time.sleep
        self._state: Any = None  # of ``random``, between two blocks

    @contextmanager
    def active(self) -> Generator[None]:
        """Stand in between; the first block seeds ``random``, others go on where it was."""
        here = self._here
        in_time: dict[str, Any] = {
            "time": here(lambda: _seconds(self._read_wall()), time.time),
            "time_ns": here(self._read_wall, self._wall),
            "monotonic": here(self._read_seconds, time.monotonic),
            "monotonic_ns": here(self._read_monotonic, self._monotonic),
            "perf_counter": here(self._read_seconds, time.perf_counter),
            "perf_counter_ns": here(self._read_monotonic, time.perf_counter_ns),
            "sleep": here(self._pause, self._sleep),
        }
        urandom = here(self._read_random, os.urandom)
        with (
            mock.patch.multiple(time, **in_time),
            mock.patch.object(os, "urandom", urandom),
            mock.patch.object(random, "_urandom", urandom),  # of SystemRandom
        ):
            if self._state is None:
                random.seed(os.urandom(SEED_BYTES))
            else:
                random.setstate(self._state)
            try:
                yield
            finally:
                self._state = random.getstate()

    def _here(
        self, function: Callable[..., Any], otherwise: Callable[..., Any]
    ) -> Callable[..., Any]:
        """Replace a function in this thread: others have the clock of the machine."""

        def call(*args: Any) -> Any:
            is_here = threading.get_ident() == self._owner
            return (function if is_here else otherwise)(*args)

        return call

    def _ask(self, name: str, *arguments: Any, real: Callable[[], Any]) -> Any:
        instead = self._tap.begin(name, arguments)
        if instead is not None:
            return instead()
        answer = real()
        self._tap.end(name, answer)
        return answer

    def _read_wall(self) -> int:
        seconds, nanoseconds = self._ask(
            WALL_CLOCK, real=lambda: divmod(self._wall(), NANOSECONDS)
        )
        return int(seconds) * NANOSECONDS + int(nanoseconds)

    def _read_monotonic(self) -> int:
        return int(self._ask(MONOTONIC_CLOCK, real=self._monotonic))

    def _read_seconds(self) -> float:
        return _seconds(self._read_monotonic())

    def _read_random(self, count: int, /) -> bytes:
        def real() -> Any:
            return np.frombuffer(self._random_bytes(count), np.uint8)

        return bytes(self._ask(RANDOM, count, real=real))

    def _pause(self, seconds: float, /) -> None:
        self._read_monotonic()  # as CPython in Wasm does
        self._ask(SLEEP, real=lambda: self._sleep(seconds))


def _seconds(nanoseconds: int) -> float:
    """Return what CPython makes of them: two roundings."""
    return float(nanoseconds) / 1e9
