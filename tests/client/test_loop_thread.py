"""The thread below the blocking client: Ctrl-C at any moment ends what goes on in it."""

from __future__ import annotations

import asyncio
import asyncio.base_events
import contextlib
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from pie_trio.client import loop_thread
from pie_trio.client.loop_thread import LoopThread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator
    from types import FrameType

FILES = {module.__file__ for module in (asyncio.base_events, contextlib, loop_thread)}
SECONDS = 60
"""Before a test gives up."""


class Work:
    """Work in the loop, which counts what goes on."""

    def __init__(self) -> None:
        self.num_begun = self.num_ended = 0
        self.begun = threading.Event()

    async def forever(self) -> None:
        async with self.block():
            await anyio.sleep_forever()

    @asynccontextmanager
    async def block(self) -> AsyncGenerator[str]:
        self.num_begun += 1
        self.begun.set()
        try:
            await anyio.lowlevel.checkpoint()
            yield "open"
        finally:
            self.num_ended += 1


@pytest.fixture
def thread() -> Generator[LoopThread]:
    thread = LoopThread()
    thread.call(anyio.sleep, 0)
    yield thread
    thread.close()


def interrupt_at(step: int, call: Callable[[], object], work: Work) -> str | None:
    """Call something, with an interrupt before one of the lines that it runs.

    Returns:
        The name of the function that was interrupted; None if fewer lines were run.
    """
    left, where = step, None

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left, where
        if frame.f_code.co_filename not in FILES:
            return None  # a finalizer, or a test
        if event == "line":
            left -= 1
            if left < 0:
                sys.settrace(None)
                where = frame.f_code.co_name
                work.begun.wait(0.02)  # the worst moment is after that
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        assert where is not None, "nobody else interrupts it"
    finally:
        sys.settrace(before)
    return where


def wait_ended(thread: LoopThread, work: Work) -> None:
    """Wait until nothing goes on any more, in a loop that still takes work."""

    async def wait() -> None:
        with anyio.fail_after(SECONDS):
            while work.num_ended < work.num_begun:
                await anyio.lowlevel.checkpoint()

    thread.call(wait)


def test_an_interrupt_at_any_line_up_to_the_wait_ends_a_call(
    thread: LoopThread,
) -> None:
    num_begun = 0
    for step in count():
        work = Work()
        where = interrupt_at(step, partial(thread.call, work.forever), work)
        wait_ended(thread, work)
        num_begun += work.num_begun
        if where == "wait":
            break
    assert num_begun, "some had begun"


def test_an_interrupt_at_any_line_closes_a_block(thread: LoopThread) -> None:
    work = Work()

    def use() -> None:
        with thread.hold(work.block()) as value:
            assert value == "open"

    for step in count():
        work = Work()
        where = interrupt_at(step, use, work)
        wait_ended(thread, work)
        if where is None:
            break
    assert work.num_begun == 1, "the last was not interrupted"


def test_what_a_block_raises_is_raised(thread: LoopThread) -> None:
    @asynccontextmanager
    async def bad(*, opens: bool) -> AsyncGenerator[None]:
        if opens:
            yield
        raise ValueError(f"{opens=}")

    with pytest.raises(ValueError, match="opens=False"), thread.hold(bad(opens=False)):
        raise AssertionError("it was not opened")
    with pytest.raises(ValueError, match="opens=True"), thread.hold(bad(opens=True)):
        pass


def test_an_end_of_the_thread_ends_what_goes_on() -> None:
    thread, work = LoopThread(), Work()
    with ThreadPoolExecutor() as pool:
        calls = [pool.submit(thread.call, work.forever) for _ in range(3)]
        while work.num_begun < 3:
            thread.call(anyio.sleep, 0)
        thread.close()
        ends = [type(call.exception(SECONDS)) for call in calls]
    assert ends == [asyncio.CancelledError] * 3
    assert work.num_ended == 3
