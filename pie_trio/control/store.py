"""The key-value store of inferlets: an SQLite file, or memory where there is no file.

Every owner has keys of its own. What :meth:`Store.set` has acknowledged is on the disk: it
survives the end of the process and of the machine. The rows and limits are in
:mod:`pie_trio.control.store_tables`; here is what stands around them: one thread at a time,
and one transaction for all requests that wait, so that one wait for the disk serves them all.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from pie_trio.control.store_tables import (
    LOCKED_SECONDS,
    StoreLimits,
    StoreTables,
    is_locked,
    open_tables,
)
from pie_trio.errors import InferletError, StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence
    from pathlib import Path

__all__ = ["Store", "StoreLimits", "open_store"]

T = TypeVar("T")

MAX_WAITING = 256
"""Requests that wait; beyond it whoever asks waits to be one of them."""

logger = logging.getLogger(__name__)


class _Request:
    """A piece of work for the thread, and whoever waits for its outcome."""

    __slots__ = ("is_done", "is_withdrawn", "is_write", "outcome", "work")

    def __init__(self, work: Callable[[StoreTables], Any], *, is_write: bool) -> None:
        self.work, self.is_write = work, is_write
        self.is_done = trio.Event()
        self.is_withdrawn = False
        self.outcome: Any = None


class Store:
    """Keys and values by owner. Made by :func:`open_store`.

    A request that is cancelled may or may not have been carried out. Requests of one task
    are carried out in order, and each sees what those before it have done.
    """

    def __init__(self, requests: trio.MemorySendChannel[_Request]) -> None:
        self._requests = requests

    async def get(self, owner: str, key: str) -> bytes | None:
        """Return the value of a key, None if there is none.

        Raises:
            BadArgumentError: The key is empty or no text.
            LimitError: It is too long.
            StoreError: The store cannot be read.
        """
        return await self._ask(lambda tables: tables.get(owner, key), is_write=False)

    async def exists(self, owner: str, key: str) -> bool:
        """Say whether a key has a value. Raises what :meth:`get` does."""
        return await self._ask(lambda tables: tables.exists(owner, key), is_write=False)

    async def list_keys(
        self, owner: str, *, prefix: str = "", after: str = "", limit: int = 1000
    ) -> list[str]:
        """Return keys that begin with ``prefix``, sorted by their characters.

        Args:
            owner: Whose keys.
            prefix: May be empty.
            after: Only keys after this one: the last of the page before.
            limit: Most keys to return.

        Raises:
            BadArgumentError: ``limit`` is not positive, or the prefix is no text.
            StoreError: The store cannot be read.
        """
        return await self._ask(
            lambda tables: tables.list_keys(
                owner, prefix=prefix, after=after, limit=limit
            ),
            is_write=False,
        )

    async def set(self, owner: str, key: str, value: bytes) -> None:
        """Give a key a value, durably.

        Raises:
            BadArgumentError: The key is empty or no text.
            LimitError: The key or the value is too large, or the owner has too many of them.
            StoreError: The store cannot be written; it is as it was.
        """
        await self._ask(lambda tables: tables.set(owner, key, value), is_write=True)

    async def delete(self, owner: str, key: str) -> bool:
        """Remove a key, durably, and say whether it was there. Raises what :meth:`get` does."""
        return await self._ask(lambda tables: tables.delete(owner, key), is_write=True)

    async def _ask(self, work: Callable[[StoreTables], T], *, is_write: bool) -> T:
        request = _Request(work, is_write=is_write)
        try:
            await self._requests.send(request)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            raise StoreError("the store is closed: the server stops") from None
        try:
            await request.is_done.wait()
        finally:
            request.is_withdrawn = True
        if isinstance(request.outcome, Exception):
            raise request.outcome
        outcome: T = request.outcome
        return outcome


@asynccontextmanager
async def open_store(
    path: Path | None,
    *,
    limits: StoreLimits | None = None,
    locked_seconds: float = LOCKED_SECONDS,
) -> AsyncGenerator[Store]:
    """Open the store, making it if needed, for as long as the block is open.

    Several processes may have the same file open; each waits for the others' locks.

    Args:
        path: Of the file, in a directory that is there; None keeps everything in memory.
        limits: None for the defaults.
        locked_seconds: How long to wait for another process that has the file locked.

    Raises:
        ConfigError: The file cannot be opened or made, is damaged, is locked, or is none of
            ours.
    """
    limiter = trio.CapacityLimiter(1)  # SQLite's connection is for one thread at a time
    tables = await trio.to_thread.run_sync(
        partial(
            open_tables, path, limits or StoreLimits(), locked_seconds=locked_seconds
        ),
        limiter=limiter,
    )
    try:
        send, receive = trio.open_memory_channel[_Request](MAX_WAITING)
        with send, receive:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_serve, tables, receive, limiter)
                    yield Store(send)
                    nursery.cancel_scope.cancel()
            finally:
                while waiting := _take_waiting(receive):  # closing would forget them
                    _abandon(waiting)
    finally:
        # Not in the thread: nothing runs there any more, and no cancellation may skip this.
        tables.close()


async def _serve(
    tables: StoreTables,
    receive: trio.MemoryReceiveChannel[_Request],
    limiter: trio.CapacityLimiter,
) -> None:
    """Carry out requests until cancelled; a batch that has begun is finished first."""
    batch: list[_Request] = []
    try:
        async for first in receive:
            batch = [first, *_take_waiting(receive)]
            batch = [request for request in batch if not request.is_withdrawn]
            if batch:
                await trio.to_thread.run_sync(
                    _run_batch, tables, batch, limiter=limiter
                )
            _finish(batch)
    finally:
        _abandon(batch)


def _take_waiting(receive: trio.MemoryReceiveChannel[_Request]) -> list[_Request]:
    waiting: list[_Request] = []
    try:
        while len(waiting) < MAX_WAITING:
            waiting.append(receive.receive_nowait())
    except trio.WouldBlock:
        pass
    return waiting


def _finish(batch: Sequence[_Request]) -> None:
    for request in batch:
        request.is_done.set()


def _abandon(requests: Sequence[_Request]) -> None:
    for request in requests:
        if not request.is_done.is_set():
            request.outcome = StoreError("the store is closed: the server stops")
            request.is_done.set()


def _run_batch(tables: StoreTables, batch: Sequence[_Request]) -> None:
    """Carry out requests in one transaction; if that fails, each in one of its own.

    So a request that cannot be carried out fails alone: on a full disk, reads still work.
    """
    try:
        _run_together(tables, batch)
    except sqlite3.Error as error:
        # A lock was waited for already: not again for every request, and reads need none.
        retried = batch if not is_locked(error) else _fail_writes(tables, batch, error)
        for request in retried:
            _run_alone(tables, request)


def _fail_writes(
    tables: StoreTables, batch: Sequence[_Request], error: sqlite3.Error
) -> list[_Request]:
    """Let the writes of a batch fail, and return the reads."""
    for request in batch:
        if request.is_write:
            _fail(tables, request, error)
    return [request for request in batch if not request.is_write]


def _run_alone(tables: StoreTables, request: _Request) -> None:
    try:
        _run_together(tables, [request])
    except sqlite3.Error as error:
        _fail(tables, request, error)


def _fail(tables: StoreTables, request: _Request, error: sqlite3.Error) -> None:
    request.outcome = tables.explain(error)
    logger.error("the store %s: %s", tables.name, error)


def _run_together(tables: StoreTables, batch: Sequence[_Request]) -> None:
    with tables.transaction(is_write=any(request.is_write for request in batch)):
        for request in batch:
            try:
                request.outcome = request.work(tables)
            except InferletError as error:  # raised before anything was changed
                request.outcome = error
