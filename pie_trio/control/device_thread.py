"""What steps a device for the event loop: one thread, where the engine is in this process.

``trio.to_thread.run_sync`` takes half as long again for the way there and back (56 us against
35), because its threads serve everybody and it carries context variables and cancellation along.
"""

from __future__ import annotations

import logging
import queue
import threading
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import outcome
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from pie_trio.engine_api import Batch, BatchResult, Engine
    from pie_trio.errors import EngineError

__all__ = ["Device", "DeviceThread", "OpenDevice", "open_device_thread"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

_Job = tuple["Callable[[], Any]", "trio.lowlevel.Task"]


class Device(Protocol):
    """Steps one engine, one batch or blocking call at a time."""

    @property
    def error(self) -> EngineError | None:
        """What every step raises since the engine was lost, until it is restored; else None."""
        ...

    async def execute(self, batch: Batch, *, is_here: bool) -> BatchResult:
        """Run one step: see :meth:`pie_trio.engine_api.Engine.execute`.

        Args:
            batch: What to run.
            is_here: It is short, and nothing else could happen meanwhile: do not leave
                this thread.
        """
        ...

    async def run(self, call: Callable[[], T]) -> T:
        """Return what ``call`` returns or raise what it raises; never abandon it."""
        ...

    async def restore(self) -> None:
        """Wait until the engine, which was lost, can be used again, with nothing in it.

        Raises:
            EngineError: It never can.
        """
        ...

    def watch(self, on_lost: Callable[[], None]) -> None:
        """Call this whenever the engine was lost."""
        ...


class OpenDevice(Protocol):
    """Opens what steps an engine."""

    def __call__(self, engine: Engine, /) -> AbstractAsyncContextManager[Device]:
        """Have it for as long as the block is open."""
        ...


class DeviceThread:
    """Steps an engine of this process. Made by :func:`open_device_thread`."""

    error = None  # it ends with this process

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.Thread(
            target=self._work, name=f"device of {engine.info.name}", daemon=True
        )
        self._thread.start()

    async def run(self, call: Callable[[], T]) -> T:
        """Run ``call`` in the thread and return what it returns, or raise what it raises.

        Not abandoned when cancelled: what a step reads and writes must outlive it.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._jobs.put((call, trio.lowlevel.current_task()))
        result: T = await trio.lowlevel.wait_task_rescheduled(
            lambda _: trio.lowlevel.Abort.FAILED
        )
        return result

    async def execute(self, batch: Batch, *, is_here: bool) -> BatchResult:
        """See :meth:`Device.execute`."""
        if is_here:
            return self._engine.execute(batch)
        return await self.run(partial(self._engine.execute, batch))

    async def restore(self) -> None:
        """See :meth:`Device.restore`."""

    def watch(self, on_lost: Callable[[], None]) -> None:
        """See :meth:`Device.watch`: it is never lost."""

    def close(self) -> None:
        """Let the thread end. No call is running."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            call, task = job
            result = outcome.capture(call)
            try:
                self._token.run_sync_soon(trio.lowlevel.reschedule, task, result)
            except trio.RunFinishedError:
                logger.warning("the event loop ended while the device was at work")
                return


@asynccontextmanager
async def open_device_thread(engine: Engine) -> AsyncGenerator[DeviceThread]:
    """Have a thread that steps this engine for as long as the block is open."""
    thread = DeviceThread(engine)
    try:
        yield thread
    finally:
        thread.close()
