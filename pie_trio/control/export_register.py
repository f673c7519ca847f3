"""Keeps what is known of persistent exports on the disk, beside what is in memory.

A change that somebody waits for is made in memory once it is on the disk, in the same order;
what an index drops by itself, as for want of pages, is taken out of the file soon after. One
transaction carries all that waits, in a thread, so that the event loop never waits for a disk.
"""

from __future__ import annotations

import itertools
import logging
import sqlite3
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

from pie_trio.control.export_tables import (
    ExportRow,
    ExportTables,
    open_export_tables,
)
from pie_trio.control.sqlite_files import LOCKED_SECONDS, is_locked, reason_of
from pie_trio.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence
    from pathlib import Path

__all__ = ["ExportRegister", "open_export_register"]

logger = logging.getLogger(__name__)


class _Request:
    """A change, what is to be done when it is on the disk or never will be, and who waits."""

    __slots__ = ("error", "is_done", "is_withdrawn", "settle", "work")

    def __init__(
        self,
        work: Callable[[ExportTables], None],
        settle: Callable[[bool], None],
    ) -> None:
        self.work, self.settle = work, settle
        self.is_done = trio.Event()
        self.is_withdrawn = False
        self.error: Exception | None = None

    def finish(self) -> None:
        """Carry on in memory, and wake whoever waits."""
        self.settle(self.error is None)
        self.is_done.set()


class ExportRegister:
    """The persistent exports of all models. Made by :func:`open_export_register`.

    As many changes wait as there are inferlets: each waits for its own.
    """

    def __init__(self, tables: ExportTables, last_number: int) -> None:
        self._tables = tables
        self._numbers = itertools.count(last_number + 1)
        self._limiter = trio.CapacityLimiter(1)  # the connection is for one thread
        self._requests: list[_Request] = []
        self._forgotten: set[int] = set()
        self._taken: set[str] = set()
        self._has_work = trio.Event()
        self._is_closed = False

    def new_number(self) -> int:
        """Return a number that no row has, or had in the time of this server."""
        return next(self._numbers)

    async def take_rows(self, model: str) -> list[ExportRow]:
        """Return what earlier servers have recorded for a model, oldest first.

        Only once: of the replicas of a model, one restores them.

        Raises:
            ConfigError: The file cannot be read.
        """
        if model in self._taken:
            return []
        self._taken.add(model)
        try:
            return await trio.to_thread.run_sync(
                self._tables.rows, model, limiter=self._limiter
            )
        except sqlite3.Error as error:
            raise ConfigError(
                f"cannot read the list of exports {self._tables.name}: {reason_of(error)}"
            ) from error

    async def put(self, row: ExportRow, settle: Callable[[bool], None]) -> None:
        """Record an export, or replace the owner's of its name.

        Args:
            row: With a new number.
            settle: Is called once, in the order of the requests, and also if whoever asked is
                cancelled: with True when it is on the disk, with False if it never will be.

        Raises:
            StoreError: The file cannot be written; it is as it was.
        """
        await self._ask(lambda tables: tables.put(row), settle)

    async def delete(self, number: int, settle: Callable[[bool], None]) -> None:
        """Take a row out, if it is there. The rest is as in :meth:`put`."""
        await self._ask(lambda tables: tables.delete([number]), settle)

    def forget(self, number: int) -> None:
        """Take a row out soon; where that fails, it is tried again with the next change."""
        self._forgotten.add(number)
        self._has_work.set()

    def close(self) -> None:
        """Refuse what waits, and take out what is to be forgotten."""
        self._is_closed = True
        for request in self._requests:
            request.error = _closed()
            request.finish()
        self._requests.clear()
        if self._forgotten:
            _write(self._tables, [], self._forgotten)

    async def serve(self) -> None:
        """Write until cancelled; what has begun is finished first."""
        while True:
            await self._has_work.wait()
            self._has_work = trio.Event()
            requests, self._requests = self._requests, []
            batch: list[_Request] = []
            for request in requests:
                if request.is_withdrawn:
                    request.settle(False)
                else:
                    batch.append(request)
            forgotten = self._forgotten.copy()
            if not batch and not forgotten:
                continue
            try:
                has_forgotten = await trio.to_thread.run_sync(
                    _write, self._tables, batch, forgotten, limiter=self._limiter
                )
            except trio.Cancelled:  # before it has begun
                self._requests[:0] = batch  # for close() to refuse
                raise
            if has_forgotten:
                self._forgotten -= forgotten
            for request in batch:
                request.finish()

    async def _ask(
        self, work: Callable[[ExportTables], None], settle: Callable[[bool], None]
    ) -> None:
        if self._is_closed:
            settle(False)
            raise _closed()
        request = _Request(work, settle)
        self._requests.append(request)
        self._has_work.set()
        try:
            await request.is_done.wait()
        finally:
            request.is_withdrawn = True
        if request.error is not None:
            raise request.error


@asynccontextmanager
async def open_export_register(
    path: Path | None, *, locked_seconds: float = LOCKED_SECONDS
) -> AsyncGenerator[ExportRegister]:
    """Open the file, making it if needed, for as long as the block is open.

    Args:
        path: In a directory that is there; None keeps everything in memory.
        locked_seconds: How long to wait for another process that has the file locked.

    Raises:
        ConfigError: It cannot be opened or made, is damaged, is locked, or is none of ours.
    """
    tables = await trio.to_thread.run_sync(
        partial(open_export_tables, path, locked_seconds=locked_seconds)
    )
    try:
        register = ExportRegister(tables, tables.last_number())
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(register.serve)
                yield register
                nursery.cancel_scope.cancel()
        finally:
            register.close()
    finally:
        # Not in the thread: nothing runs there any more, and no cancellation may skip this.
        tables.close()


def _write(
    tables: ExportTables, batch: Sequence[_Request], forgotten: set[int]
) -> bool:
    """Carry out changes in one transaction; if that fails, each in one of its own.

    Returns:
        Whether what is to be forgotten is gone.
    """
    try:
        with tables.transaction():
            tables.delete(forgotten)
            for request in batch:
                request.work(tables)
    except sqlite3.Error as error:
        logger.error("the list of exports %s: %s", tables.name, error)
        if is_locked(error):  # which was waited for already: not again for each
            for request in batch:
                request.error = _explain(error)
        else:
            for request in batch:
                _write_alone(tables, request)
        return False
    return True


def _write_alone(tables: ExportTables, request: _Request) -> None:
    try:
        with tables.transaction():
            request.work(tables)
    except sqlite3.Error as error:
        request.error = _explain(error)


def _explain(error: sqlite3.Error) -> StoreError:
    """Return what to tell an inferlet. It does not name the file, which is not its own."""
    return StoreError(f"the list of exports failed: {reason_of(error)}")


def _closed() -> StoreError:
    return StoreError("the list of exports is closed: the server stops")
