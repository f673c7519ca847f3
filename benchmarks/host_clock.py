"""Tells the host's time from the guests' and the engine's, by clocks around the borders.

Guests run inside of ``wasmtime_call_future_poll``, and call back into the host from there; the
engine runs inside of ``execute``. What is left of the process's CPU time is the host's: our
Python, trio, wasmtime's switching, and the way to the engine's thread and back. CPU time, since
on a shared machine the wall time is also that of others.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from wasmtime import _ffi as ffi

from pie_trio.application.wasm.linking import HostLinker

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from pie_trio.engine_api import Engine

__all__ = ["HostClock", "open_host_clock"]


class HostClock:
    """Sums of seconds.

    Attributes:
        polled: In polls of guests, what they call included.
        called: In host functions, called from guests.
        stepped: In the engine.
    """

    def __init__(self) -> None:
        self.polled = self.called = self.stepped = 0.0
        self._started = time.process_time()

    def start(self) -> None:
        """Begin anew."""
        self.polled = self.called = self.stepped = 0.0
        self._started = time.process_time()

    def host_seconds(self) -> float:
        """Return the host's time since the start."""
        used = time.process_time() - self._started
        return used - self.guest_seconds() - self.stepped

    def guest_seconds(self) -> float:
        """Return the guests' own time since the start."""
        return self.polled - self.called

    def watch_engine(self, engine: Engine) -> None:
        """Count the steps of an engine."""
        execute = engine.execute

        def timed(batch: Any) -> Any:
            began = time.thread_time()
            try:
                return execute(batch)
            finally:
                self.stepped += time.thread_time() - began

        engine.execute = timed  # type: ignore[method-assign]


@contextmanager
def open_host_clock() -> Generator[HostClock]:
    """Watch guests that are linked and run while the block is open."""
    clock = HostClock()
    poll = ffi.wasmtime_call_future_poll
    names = ("_make_callback", "_make_waiting_callback")
    made: dict[str, Callable[..., Any]] = {n: getattr(HostLinker, n) for n in names}
    go_on = HostLinker._continue_call

    def timed_poll(future: Any) -> Any:
        began = time.thread_time()
        result = poll(future)
        clock.polled += time.thread_time() - began
        return result

    def timing(call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            began = time.thread_time()
            result = call(*args)
            clock.called += time.thread_time() - began
            return result

        return timed

    def make_maker(make: Callable[..., Any]) -> Callable[..., Any]:
        return lambda self, function: timing(make(self, function))

    ffi.wasmtime_call_future_poll = timed_poll
    HostLinker._continue_call = timing(go_on)  # type: ignore[method-assign]
    for name in names:
        setattr(HostLinker, name, make_maker(made[name]))
    try:
        yield clock
    finally:
        ffi.wasmtime_call_future_poll = poll
        HostLinker._continue_call = go_on  # type: ignore[method-assign]
        for name in names:
            setattr(HostLinker, name, made[name])
