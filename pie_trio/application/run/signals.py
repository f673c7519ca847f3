"""Ctrl-C and SIGTERM: each ends a run in one message, wherever the run stands."""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator
    from contextlib import AbstractContextManager
    from types import FrameType

    import trio

__all__ = ["Interrupted", "Signals", "catch_signals"]

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to stop.

    Attributes:
        number: The signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Signals:
    """What arrived so far, and how it is told. Made by :func:`catch_signals`.

    An exception that is raised in a ``__del__`` or in a callback from C is lost. The signal is
    therefore kept as well, and honoured at the next end of a phase.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._is_held = False
        self._wait_seconds = 0.0
        self._timer: threading.Timer | None = None
        self._ask: Callable[[], None] | None = None
        self._is_over: trio.Event | None = None

    def check(self) -> None:
        """Raise :class:`Interrupted` if a signal has arrived."""
        if self._received is not None:
            raise Interrupted(self._received) from None

    @contextmanager
    def phase(self) -> Generator[None]:
        """Honour at the end of the block what arrived in it, whatever else was raised."""
        try:
            yield
        finally:
            self.check()

    @contextmanager
    def held(self) -> Generator[None]:
        """Raise nothing inside of the block, but at its end.

        Only the second signal is raised there, for what does not end after the first.
        """
        with self.phase():
            was_held, self._is_held = self._is_held, True
            try:
                yield
            finally:
                self._is_held = was_held

    def left_to_trio(self) -> AbstractContextManager[None]:
        """Raise nothing inside of the block, where trio runs: :meth:`watch` does."""
        return self.held()

    @asynccontextmanager
    async def watch(self) -> AsyncGenerator[None]:
        """Raise :class:`Interrupted` in the block upon the first signal."""
        import trio  # here, so that signals are caught before anything slow is imported

        async def watch_one(
            *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
        ) -> None:
            # Left upon the first signal, so that a second one reaches `handle`.
            with trio.open_signal_receiver(*NUMBERS) as signals:
                self.check()  # it may have come before the receiver was there
                task_status.started()
                async for number in signals:
                    self._received = number
                    break
            if self._ask is not None and self._is_over is not None:
                self._ask()
                # A terminal that takes nothing may hold up the end.
                with trio.move_on_after(self._wait_seconds):
                    await self._is_over.wait()
            self.check()

        async with trio.open_nursery() as nursery:
            await nursery.start(watch_one)
            yield
            nursery.cancel_scope.cancel()

    @contextmanager
    def asking(
        self, ask: Callable[[], None], *, wait_seconds: float
    ) -> Generator[None]:
        """Ask for the end of the block upon the first signal, and raise at the end of a phase.

        Args:
            ask: Called in the main thread, by :meth:`watch` where trio runs there.
            wait_seconds: After so long, and upon the second signal, it is raised in the block.
        """
        import trio  # as in `watch`

        self._ask, self._wait_seconds = ask, wait_seconds
        self._is_over = is_over = trio.Event()
        try:
            yield
        finally:
            self._ask = None
            is_over.set()
            if self._timer is not None:
                self._timer.cancel()

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Be the handler of a signal."""
        is_first = self._received is None
        self._received = number
        if not is_first or (self._ask is None and not self._is_held):
            raise Interrupted(number)
        if self._ask is not None and not self._is_held:
            self._ask()
            main, again = threading.main_thread().ident, signal.pthread_kill
            assert main is not None, "it runs"
            self._timer = threading.Timer(self._wait_seconds, again, (main, number))
            self._timer.daemon = True
            self._timer.start()


@contextmanager
def catch_signals() -> Generator[Signals]:
    """Turn Ctrl-C and SIGTERM into :class:`Interrupted` for as long as the block is open."""
    signals = Signals()
    complain = sys.unraisablehook

    def complain_of_others(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, Interrupted):  # kept, so it is not lost
            complain(unraisable)

    sys.unraisablehook = complain_of_others
    previous = {number: signal.signal(number, signals.handle) for number in NUMBERS}
    try:
        with signals.phase():
            yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        sys.unraisablehook = complain
