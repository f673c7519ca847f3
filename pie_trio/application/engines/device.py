"""Steps an engine in another process from the event loop, and starts it again when it has ended.

There is no thread in between: a step is a message, and its answer wakes the loop.
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from pie_trio.application.engines.channel import Channel, ClosedError
from pie_trio.application.engines.process import read_opened
from pie_trio.application.engines.remote import took_too_long
from pie_trio.errors import EngineError, EngineLostError, PieError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from pie_trio.application.engines.process import EngineProcess
    from pie_trio.application.engines.remote import RemoteEngine
    from pie_trio.config import EngineProcessConfig
    from pie_trio.engine_api import Batch, BatchResult, ModelInfo

__all__ = ["Backoff", "ProcessDevice", "open_process_device"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

LONE_SECONDS = 0.002
"""So long the loop waits for a lone short step itself: to be woken takes longer."""

CHECK_SECONDS = 1.0
"""How often the time of a step is looked at."""


class Backoff:
    """Says when an engine may start again, and whether."""

    def __init__(self, config: EngineProcessConfig) -> None:
        self._config = config
        self._starts = deque[float]()

    def next_delay(self, now: float) -> float | None:
        """Return the seconds until the next start, which counts; None if there were too many."""
        config = self._config
        while self._starts and now - self._starts[0] > config.window_seconds:
            self._starts.popleft()
        count = len(self._starts)
        if count >= config.max_restarts:
            return None
        self._starts.append(now)
        delay: float = config.first_delay_seconds * 2.0**count
        return min(delay, config.max_delay_seconds)


class ProcessDevice:
    """Steps a :class:`~.remote.RemoteEngine`. Made by :func:`open_process_device`."""

    def __init__(self, engine: RemoteEngine) -> None:
        self._engine = engine
        self._backoff = Backoff(engine.config)
        self._limiter = trio.CapacityLimiter(1)
        self._num_steps = 0  # on their way
        self._step_since: float | None = None  # when the oldest of them began
        self._latest: _Turn | None = None
        self._on_lost: Callable[[], None] = lambda: None
        self._restored = trio.Event()
        self.num_restarts = 0

    @property
    def error(self) -> EngineError | None:
        """See :attr:`pie_trio.control.device_thread.Device.error`."""
        return self._engine.error

    def watch(self, on_lost: Callable[[], None]) -> None:
        """See :meth:`pie_trio.control.device_thread.Device.watch`."""
        self._on_lost = on_lost

    async def execute(self, batch: Batch, *, is_here: bool) -> BatchResult:
        """See :meth:`pie_trio.control.device_thread.Device.execute`.

        If it is cancelled, the process ends: its memory is its own, so nobody gets what the step
        writes, and nobody wants the answer.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        engine = self._engine
        process = engine.process
        before, turn = self._latest, _Turn()
        self._latest = turn
        if self._num_steps == 0:
            before, self._step_since = None, trio.current_time()
        self._num_steps += 1
        try:
            if before is not None:
                await before.is_sent.wait()
            await _send(process.steps, engine.pack(batch))
            turn.is_sent.set()
            if before is not None:
                await before.has_ended.wait()
            elif is_here:
                process.steps.wait_readable(LONE_SECONDS)
            answer = await _receive(process.steps)
        except ClosedError:
            raise engine.lose(process) from None
        except BaseException:
            engine.lose(process, "the server stopped in the middle of a step")
            raise
        finally:
            self._num_steps -= 1
            self._step_since = trio.current_time() if self._num_steps else None
            turn.is_sent.set()
            turn.has_ended.set()
        return engine.unpack(answer)

    async def run(self, call: Callable[[], T]) -> T:
        """See :meth:`pie_trio.control.device_thread.Device.run`, and :meth:`execute`."""
        engine = self._engine
        process = engine.process
        try:
            return await trio.to_thread.run_sync(
                call, limiter=self._limiter, abandon_on_cancel=True
            )
        except trio.Cancelled:
            engine.lose(process, "the server stopped while pages were moved")
            raise

    async def restore(self) -> None:
        """Start the engine again, and again if that fails: see :class:`Backoff`.

        Raises:
            EngineLostError: It was lost too often.
        """
        engine = self._engine
        trio.lowlevel.notify_closing(engine.latest.life)
        engine.latest.close()
        while True:
            delay = self._backoff.next_delay(trio.current_time())
            if delay is None:
                config = engine.config
                reason = (
                    f"{config.max_restarts} times within {config.window_seconds:g} s: it is "
                    "not started again, so start the server anew"
                )
                logger.error("the engine of %s was lost %s", engine.name, reason)
                raise EngineLostError(engine.name, reason)
            await trio.sleep(delay)
            process = engine.spawn()
            try:
                found = await self._wait_opened(process)
            except PieError as error:
                process.close()
                logger.error("the engine of %s did not start: %s", engine.name, error)
                continue
            except BaseException:
                process.close()
                raise
            engine.adopt(process, *found)
            self.num_restarts += 1
            self._restored.set()
            logger.warning("the engine of %s has started again", engine.name)
            return

    async def _wait_opened(
        self, process: EngineProcess
    ) -> tuple[ModelInfo, dict[str, Any]]:
        seconds = self._engine.config.start_seconds
        try:
            with trio.fail_after(seconds):
                answer = await _receive(process.steps)
        except ClosedError:
            raise EngineError(f"its process {process.end_reason()}") from None
        except trio.TooSlowError:
            raise EngineError(f"it was not open after {seconds:g} s") from None
        return read_opened(answer)

    async def watch_life(self) -> None:
        """Notice that the process has ended, also while nobody uses it."""
        while True:
            self._restored = trio.Event()
            process = self._engine.latest
            # Nothing is ever sent there: it is readable once the process has gone.
            await _wait_ended(process)
            self._engine.lose(process)
            self._on_lost()
            await self._restored.wait()

    async def watch_steps(self) -> None:
        """Report a step that takes long, and end the process of one that takes too long."""
        config = self._engine.config
        check_seconds = min(CHECK_SECONDS, config.report_seconds)
        reported: float | None = None
        while True:
            await trio.sleep(check_seconds)
            since = self._step_since
            if since is None:
                continue
            elapsed = trio.current_time() - since
            if elapsed > config.step_seconds:
                reason = took_too_long("a step", config.step_seconds)
                self._engine.lose(self._engine.latest, reason)
            elif elapsed > config.report_seconds and reported != since:
                reported = since
                logger.warning(
                    "a step of %s takes %.0f s already; after %g s its engine is ended",
                    *(self._engine.name, elapsed, config.step_seconds),
                )


@asynccontextmanager
async def open_process_device(engine: RemoteEngine) -> AsyncGenerator[ProcessDevice]:
    """Step this engine, and keep it alive, for as long as the block is open.

    The engine stays the caller's.
    """
    device = ProcessDevice(engine)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.watch_life)
        nursery.start_soon(device.watch_steps)
        yield device
        nursery.cancel_scope.cancel()


class _Turn:
    """Of a step: whoever asks for the next one lets it go first."""

    def __init__(self) -> None:
        self.is_sent, self.has_ended = trio.Event(), trio.Event()


async def _send(channel: Channel, message: Any) -> None:
    parts = channel.start_send(message)
    while parts:
        await trio.lowlevel.wait_writable(channel)
        parts = channel.continue_send(parts)


async def _receive(channel: Channel) -> tuple[bool, Any]:
    while (answer := channel.try_receive()) is None:
        await trio.lowlevel.wait_readable(channel)
    found: tuple[bool, Any] = answer
    return found


async def _wait_ended(process: EngineProcess) -> None:
    try:
        await trio.lowlevel.wait_readable(process.life)
    except trio.ClosedResourceError:
        return  # it was closed
