"""What steps a device for the event loop: a thread, where the engine is in this process.

Where steps overlap, a second thread waits for their ends. ``trio.to_thread.run_sync`` takes half as long again for the way there and back (56 us against
35), because its threads serve everybody and it carries context variables and cancellation along.
"""

from __future__ import annotations

import logging
import queue
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import outcome
import trio

from pie_trio.control.device_steps import DeviceSteps

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from trio.lowlevel import Task

    from pie_trio.engine_api import Batch, BatchResult, Engine
    from pie_trio.errors import EngineError

__all__ = ["Device", "DeviceThread", "OpenDevice", "open_device_thread"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

_Jobs = queue.SimpleQueue["tuple[Callable[[], Any], Task] | None"]

_GOES_ON = object()
"""What a call returns whose task is told of its end by another thread."""


class Device(Protocol):
    """Steps one engine, one batch or blocking call at a time.

    A second step may be asked for while one is on its way: it runs after that one, and its forwards
    may follow those of that one: see :attr:`pie_trio.engine_api.ForwardRequest.follows`.
    """

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
        self._name = engine.info.name
        self._steps = DeviceSteps(engine)
        self._token = trio.lowlevel.current_trio_token()
        self._jobs: _Jobs = queue.SimpleQueue()
        self._ends: _Jobs = queue.SimpleQueue()
        self._threads = [self._start_thread(self._work, self._jobs)]
        if self._steps.is_pipelined:
            self._threads.append(self._start_thread(self._work, self._ends))

    def _start_thread(self, target: Callable[[_Jobs], None], jobs: _Jobs) -> Thread:
        name = f"device of {self._name}"
        thread = Thread(target=target, args=(jobs,), name=name, daemon=True)
        thread.start()
        return thread

    async def run(self, call: Callable[[], T]) -> T:
        """Run ``call`` in the thread and return what it returns, or raise what it raises.

        Not abandoned when cancelled: what a step reads and writes must outlive it.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        result: T = await self._wait_for(call)
        return result

    async def execute(self, batch: Batch, *, is_here: bool) -> BatchResult:
        """See :meth:`Device.execute`."""
        if is_here:
            return self._steps.execute(batch)
        await trio.lowlevel.checkpoint_if_cancelled()
        call: Callable[[], object] = partial(self._steps.execute, batch)
        if self._steps.is_pipelined:
            call = partial(self._start, batch, trio.lowlevel.current_task())
        result: BatchResult = await self._wait_for(call)
        return result

    async def _wait_for(self, call: Callable[[], Any]) -> Any:
        self._jobs.put((call, trio.lowlevel.current_task()))
        return await trio.lowlevel.wait_task_rescheduled(
            lambda _: trio.lowlevel.Abort.FAILED
        )

    def _start(self, batch: Batch, task: Task) -> object:
        """Start a step, whose end the other thread waits for and tells the task."""
        self._ends.put((self._steps.start(batch).finish, task))
        return _GOES_ON

    async def restore(self) -> None:
        """See :meth:`Device.restore`."""

    def watch(self, on_lost: Callable[[], None]) -> None:
        """See :meth:`Device.watch`: it is never lost."""

    def close(self) -> None:
        """Let the threads end. No call is running."""
        for jobs in (self._jobs, self._ends):
            jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self, jobs: _Jobs) -> None:
        while (job := jobs.get()) is not None:
            call, task = job
            result = outcome.capture(call)
            if getattr(result, "value", None) is _GOES_ON:
                continue
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
