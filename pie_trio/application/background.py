"""Tasks that are started for one instance, or for the server, when they are first needed.

The server owns them all, in one nursery. Each instance cancels those that were started for it and
waits for them before it has ended; a launch that needs none pays for none.
"""

from __future__ import annotations

import logging
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

import trio

from pie_trio.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

__all__ = ["Background", "Lazy", "TaskGroup", "open_background"]

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Background:
    """Where tasks are started. Made by :func:`open_background`."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def start(self, work: Callable[[], Awaitable[object]]) -> None:
        """Start a task. An error of it is a bug: it is logged, and ends nobody else."""
        self._nursery.start_soon(_log_errors, work)


@asynccontextmanager
async def open_background() -> AsyncGenerator[Background]:
    """Own tasks for as long as the block is open; what is left of them is cancelled."""
    async with trio.open_nursery() as nursery:
        yield Background(nursery)
        nursery.cancel_scope.cancel()


async def _log_errors(work: Callable[[], Awaitable[object]]) -> None:
    try:
        await work()
    except Exception:
        logger.exception("a task in the background failed")


class TaskGroup:
    """The tasks of one instance.

    Args:
        background: Where they run; without it none can be started.
    """

    def __init__(self, background: Background | None) -> None:
        self._background = background
        self._scopes: dict[trio.CancelScope, None] = {}
        self._is_closed = False
        self._all_ended = trio.Event()

    def __len__(self) -> int:
        return len(self._scopes)

    def check(self) -> None:
        """Raise unless tasks can be started.

        Raises:
            UnsupportedError: The server runs none.
        """
        if self._background is None:
            raise UnsupportedError(
                "this server runs programs alone: it has no store, makes no requests and "
                "launches no children"
            )

    def start(self, work: Callable[[], Awaitable[object]]) -> trio.CancelScope:
        """Start a task, after :meth:`check`, and return the scope that cancels it."""
        assert self._background is not None, "callers check before they start"
        scope = trio.CancelScope()
        if self._is_closed:
            scope.cancel()  # whoever starts it then gets what it does when it is cancelled

        async def run() -> None:
            try:
                with scope:
                    await work()
            finally:
                del self._scopes[scope]
                if not self._scopes:
                    self._all_ended.set()

        self._scopes[scope] = None
        self._background.start(run)
        return scope

    async def close(self) -> None:
        """Cancel all tasks and wait for them; later ones are cancelled as they start."""
        self._is_closed = True
        for scope in self._scopes:
            scope.cancel()
        while self._scopes:
            self._all_ended = trio.Event()
            await self._all_ended.wait()


class Lazy(Generic[T]):
    """What is opened by whoever needs it first, and stays open for all after that.

    Args:
        background: Its owner: what is open is closed when that ends.
        open_it: Opens it. After an error, the next who needs it tries again.
    """

    def __init__(
        self,
        background: Background,
        open_it: Callable[[], AbstractAsyncContextManager[T]],
    ) -> None:
        self._background, self._open_it = background, open_it
        self._opening: _Opening[T] | None = None

    async def get(self) -> T:
        """Return it. Raises what opening it raised."""
        opening = self._opening
        if opening is None:
            opening = self._opening = _Opening()
            self._background.start(lambda: self._keep_open(opening))
        await opening.is_done.wait()
        if opening.error is not None:
            raise opening.error
        assert opening.value, "it was opened, or that has failed"
        return opening.value[0]

    async def _keep_open(self, opening: _Opening[T]) -> None:
        try:
            async with self._open_it() as value:
                opening.value = [value]
                opening.is_done.set()
                await trio.sleep_forever()
        except Exception as error:
            if opening.is_done.is_set():
                raise
            opening.error = error
        finally:
            self._opening = None
            opening.is_done.set()


class _Opening(Generic[T]):
    """One attempt to open something; its value is in a list, so that it may be None."""

    def __init__(self) -> None:
        self.is_done = trio.Event()
        self.value: list[T] = []
        self.error: Exception | None = None
