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

from pie_trio.application.recording.taps import MONOTONIC_CLOCK, RANDOM, WALL_CLOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from pie_trio.application.recording.taps import Tap

__all__ = ["tap_system"]

SEED_BYTES = 16
"""A guest takes so many when it starts."""
NANOSECONDS = 10**9


@contextmanager
def tap_system(
    tap: Tap, random_bytes: Callable[[int], bytes] = os.urandom
) -> Generator[None]:
    """Let clocks and random bytes of this thread go through a tap, and seed ``random`` by it.

    Args:
        tap: In between.
        random_bytes: Where random bytes come from if the tap has none.
    """
    owner = threading.get_ident()
    wall, monotonic, sleep = time.time_ns, time.monotonic_ns, time.sleep
    is_replayed = False

    def ask(name: str, *arguments: Any, real: Callable[[], Any]) -> Any:
        nonlocal is_replayed
        instead = tap.begin(name, arguments)
        if instead is not None:
            is_replayed = True
            return instead()
        answer = real()
        tap.end(name, answer)
        return answer

    def read_wall() -> int:
        found = ask(WALL_CLOCK, real=lambda: divmod(wall(), NANOSECONDS))
        seconds, nanoseconds = found
        return int(seconds) * NANOSECONDS + int(nanoseconds)

    def read_monotonic() -> int:
        return int(ask(MONOTONIC_CLOCK, real=monotonic))

    def read_random(count: int, /) -> bytes:
        def real() -> Any:
            return np.frombuffer(random_bytes(count), np.uint8)

        return bytes(ask(RANDOM, count, real=real))

    def pause(seconds: float, /) -> None:
        if not is_replayed:
            sleep(seconds)

    def here(function: Callable[..., Any], otherwise: Callable[..., Any]) -> Any:
        """Replace a function in this thread: others have a clock of their own."""

        def call(*args: Any) -> Any:
            is_here = threading.get_ident() == owner
            return (function if is_here else otherwise)(*args)

        return call

    in_time = {
        "time": here(lambda: read_wall() / NANOSECONDS, time.time),
        "time_ns": here(read_wall, wall),
        "monotonic": here(lambda: read_monotonic() / NANOSECONDS, time.monotonic),
        "monotonic_ns": here(read_monotonic, monotonic),
        "perf_counter": here(lambda: read_monotonic() / NANOSECONDS, time.perf_counter),
        "perf_counter_ns": here(read_monotonic, time.perf_counter_ns),
        "sleep": here(pause, sleep),
    }
    urandom = here(read_random, os.urandom)
    with (
        mock.patch.multiple(time, **in_time),
        mock.patch.object(os, "urandom", urandom),
        mock.patch.object(random, "_urandom", urandom),  # of SystemRandom, and secrets
    ):
        random.seed(os.urandom(SEED_BYTES))
        yield
