"""A thread with an event loop, for callers that block. Ctrl-C may reach those at any moment.

An interrupt is raised between any two steps of the main thread, also while it hands work over.
So work is begun without a lock that the interrupted thread could keep, and what is to end it
exists before it begins.
"""

from __future__ import annotations

import asyncio
import atexit
from contextlib import ExitStack, contextmanager
from functools import partial
from queue import SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

from anyio import CancelScope
from anyio.from_thread import start_blocking_portal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
    from contextlib import AbstractAsyncContextManager

__all__ = ["LoopThread"]

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


class LoopThread:
    """A thread with an event loop, started when it is needed first."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._starting = Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def call(
        self,
        function: Callable[P, Awaitable[R]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Call an asynchronous function there; Ctrl-C here cancels it."""
        work = _Call(partial(function, *args, **kwargs))
        try:
            work.begin(self._start())
            return work.wait()
        except BaseException:
            work.leave()
            raise

    @contextmanager
    def hold(self, block: AbstractAsyncContextManager[T, Any]) -> Generator[T]:
        """Keep an asynchronous block open there, all in one task.

        It is closed as if nothing had happened inside; Ctrl-C before it is open cancels it.
        """
        work = _Block(block)
        try:
            try:
                work.begin(self._start())
                yield work.wait()
            finally:
                work.leave()
                work.wait_ended()
        except BaseException:  # the end may be interrupted as well
            work.leave()
            raise

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """Yield what an asynchronous iterator has."""
        while True:
            try:
                yield self.call(_next, items)
            except _StopError:
                return

    def close(self) -> None:
        """End the thread, and what still goes on in it."""
        atexit.unregister(self.close)
        self._loop = None
        self._stack.close()

    def _start(self) -> asyncio.AbstractEventLoop:
        if (loop := self._loop) is not None:
            return loop
        with self._starting:  # several threads may come at once
            if self._loop is None:
                # Else Python waits for the thread without end.
                atexit.register(self.close)
                portal = self._stack.enter_context(start_blocking_portal("asyncio"))
                self._loop = portal.call(asyncio.get_running_loop)
            return self._loop


class _Work(Generic[R]):
    """Something that goes on in the loop for somebody who waits in another thread."""

    def __init__(self) -> None:
        # Its wait is one step of C, in which an interrupt leaves no lock behind.
        self._values = SimpleQueue[R | None]()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._scope: CancelScope | None = None
        self._is_left = self._has_ended = False
        self._error: BaseException | None = None

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have it begun, and do not wait for that."""
        self._loop = loop
        loop.call_soon_threadsafe(self._create_task)

    def wait(self) -> R:
        """Return what it tells, or raise why it does not."""
        value = self._values.get()
        if self._error is not None:
            raise self._error
        return cast("R", value)

    def leave(self) -> None:
        """Let it know that nobody wants it any more, without waiting for its end."""
        self._is_left = True
        try:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._end)
        except RuntimeError:  # the loop was closed, and all that was in it
            self._has_ended = True

    def wait_ended(self) -> None:
        """Wait for its end after it was left, and raise why it has failed."""
        while self._loop is not None and not self._has_ended:
            self._values.get()
        if self._error is not None:
            raise self._error

    async def work(self) -> None:
        """Do it, and tell what comes of it."""
        raise NotImplementedError

    def tell(self, value: R | None) -> None:
        """Wake who waits."""
        self._values.put(value)

    def stop(self) -> None:
        """Have it ended; called in the loop each time that it is left."""
        assert self._scope is not None, "it runs"
        self._scope.cancel()

    def _create_task(self) -> None:
        assert self._loop is not None, "it runs this"
        self._task = self._loop.create_task(self._run())

    def _end(self) -> None:
        if self._task is None:  # interrupted before it was begun
            self._has_ended = True
            self.tell(None)
        elif self._scope is not None and not self._has_ended:
            self.stop()

    async def _run(self) -> None:
        try:
            with CancelScope() as self._scope:
                if not self._is_left:
                    await self.work()
        except BaseException as error:
            self._error = error
            if not isinstance(error, Exception):
                raise
        finally:
            self._has_ended = True
            self.tell(None)  # only who has left, or gets the error, takes this


class _Call(_Work[R]):
    """A call of a function."""

    def __init__(self, function: Callable[[], Awaitable[R]]) -> None:
        super().__init__()
        self._function = function

    async def work(self) -> None:
        self.tell(await self._function())


class _Block(_Work[T]):
    """A block that is open until it is left."""

    def __init__(self, block: AbstractAsyncContextManager[T, Any]) -> None:
        super().__init__()
        self._block = block
        self._closing = asyncio.Event()
        self._is_open = False

    async def work(self) -> None:
        async with self._block as value:
            self._is_open = True
            self.tell(value)
            await self._closing.wait()

    def stop(self) -> None:
        if self._is_open and not self._closing.is_set():
            self._closing.set()
        else:  # it does not open, or does not close
            super().stop()


class _StopError(Exception):
    """The end of an iteration; Python lets no StopAsyncIteration out of a coroutine."""


async def _next(items: AsyncIterator[T]) -> T:
    try:
        return await anext(items)
    except StopAsyncIteration:
        raise _StopError from None
