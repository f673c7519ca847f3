"""The one thread that steps a device.

``trio.to_thread.run_sync`` takes half as long again for the way there and back (56 us against
35), because its threads serve everybody and it carries context variables and cancellation along.
"""

from __future__ import annotations

import logging
import queue
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import outcome
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

__all__ = ["Device", "DeviceThread", "open_device_thread"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

_Job = tuple["Callable[[], Any]", "trio.lowlevel.Task"]


class Device(Protocol):
    """Runs one blocking call at a time."""

    async def run(self, call: Callable[[], T]) -> T:
        """Return what ``call`` returns or raise what it raises; never abandon it."""
        ...


class DeviceThread:
    """Runs one blocking call at a time. Made by :func:`open_device_thread`."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
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
async def open_device_thread(name: str) -> AsyncGenerator[DeviceThread]:
    """Have a device thread for as long as the block is open."""
    thread = DeviceThread(name)
    try:
        yield thread
    finally:
        thread.close()
