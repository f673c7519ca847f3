"""Files of SQLite as the server keeps them: private, in WAL mode, and known by their header.

What is committed is on the disk. Plain synchronous code; :mod:`pie_trio.control.store` and
:mod:`pie_trio.control.export_register` run it in a thread.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

__all__ = [
    "LOCKED_SECONDS",
    "FileKind",
    "is_locked",
    "open_database",
    "reason_of",
    "transaction",
]

LOCKED_SECONDS = 5.0
"""How long to wait for another process that has the file locked."""
RETRY_SECONDS = 0.01
"""Where SQLite does not wait by itself."""


@dataclass(frozen=True, slots=True)
class FileKind:
    """What a file holds.

    Attributes:
        noun: For messages, with its article: ``the store``.
        application_id: Of the file's header.
        version: Of the tables; a file of a higher one is refused.
        tables: Statements that make them.
        probes: Queries that fail unless the tables are as they should be.
        remedy: What to do about a file that is of another application or of a newer version.
    """

    noun: str
    application_id: int
    version: int
    tables: str
    probes: tuple[str, ...]
    remedy: str


def open_database(
    path: Path | None,
    kind: FileKind,
    *,
    max_file_bytes: int | None = None,
    locked_seconds: float = LOCKED_SECONDS,
) -> sqlite3.Connection:
    """Open a file, making it if needed, readable by its owner only.

    The connection may be used by any thread, by one at a time. It begins no transactions by
    itself.

    Args:
        path: None for a database in memory.
        kind: What the file holds.
        max_file_bytes: Of the whole file, rounded to pages of 4 KiB; None for no limit.
        locked_seconds: How long to wait for another process that has the file locked.

    Raises:
        ConfigError: The file cannot be opened or made, is damaged, is locked, or is of
            another kind.
    """
    name = str(path) if path else ":memory:"
    if path:
        _make_private(path, kind)
    try:
        connection = sqlite3.connect(
            name,
            timeout=locked_seconds,
            isolation_level=None,  # we say BEGIN and COMMIT ourselves
            check_same_thread=False,  # whoever opens it sees to that
        )
    except sqlite3.Error as error:
        raise ConfigError(
            f"cannot open {kind.noun} {name}: {reason_of(error)}"
        ) from error
    try:
        _prepare_patiently(connection, name, kind, locked_seconds=locked_seconds)
        if max_file_bytes is not None:
            (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
            max_pages = max(1, max_file_bytes // page_bytes)
            connection.execute(f"PRAGMA max_page_count = {max_pages}")
    except sqlite3.Error as error:
        connection.close()
        raise ConfigError(
            f"cannot use {kind.noun} {name}: {reason_of(error)}"
        ) from error
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection, *, is_write: bool) -> Generator[None]:
    """Commit what the block does, durably; nothing of it if the block raises."""
    connection.execute("BEGIN IMMEDIATE" if is_write else "BEGIN")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # some errors have rolled back already
            connection.execute("ROLLBACK")
        raise


def is_locked(error: sqlite3.Error) -> bool:
    """Say whether another process has the file locked, which was waited for already."""
    return _primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def reason_of(error: sqlite3.Error) -> str:
    """Say what went wrong and what to do about it."""
    match _primary_code(error):
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            return (
                "it is damaged, or no database: restore a copy, or move it away and a new "
                "one is made"
            )
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return (
                "another process has it locked for too long: end that one, or use another "
                "file"
            )
        case sqlite3.SQLITE_FULL:
            return (
                "it is full: free space on its disk, delete some of what it keeps, or raise "
                "its limit"
            )
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_CANTOPEN:
            return (
                "it may not be written: check the mode and the owner of its directory"
            )
        case sqlite3.SQLITE_IOERR:
            return f"its disk failed ({error}): check that it is there and not full"
        case _:
            return str(error)


def _make_private(path: Path, kind: FileKind) -> None:
    """Make the file with mode 0600; SQLite gives the files beside it the same mode.

    A file that is there is not opened: closing it would end the locks of other connections
    of this process (https://www.sqlite.org/howtocorrupt.html, section 2.2).
    """
    try:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            if not path.is_file():
                raise
            path.chmod(0o600)
    except OSError as error:
        raise ConfigError(
            f"cannot open {kind.noun} {path}: {error.strerror}: name a file that you may "
            "write, in a directory that is there"
        ) from error


def _prepare_patiently(
    connection: sqlite3.Connection, name: str, kind: FileKind, *, locked_seconds: float
) -> None:
    """Prepare a connection while others prepare theirs.

    SQLite does not wait by itself for who changes the journal's mode, as all who open a new
    file at once do.
    """
    deadline = time.monotonic() + locked_seconds
    while True:
        try:
            _prepare(connection, name, kind)
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if not is_locked(error) or time.monotonic() > deadline:
                raise
        else:
            return
        time.sleep(RETRY_SECONDS)


def _prepare(connection: sqlite3.Connection, name: str, kind: FileKind) -> None:
    """Set up a connection, and the tables in an empty file."""
    # In this order: another process may be making the tables, all of it in one transaction.
    is_empty = not _count_tables(connection)
    found_id, found_version = (
        int(connection.execute(f"PRAGMA {what}").fetchone()[0])
        for what in ("application_id", "user_version")
    )
    if not is_empty and found_id != kind.application_id:
        raise ConfigError(
            f"{name} is a database of another application: {kind.remedy} for {kind.noun}"
        )
    if found_version > kind.version:
        raise ConfigError(
            f"{kind.noun} {name} was written by a newer Pie: use that one, or {kind.remedy}"
        )
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode not in ("wal", "memory"):
        raise ConfigError(
            f"cannot use {kind.noun} {name}: its file system has no shared memory: name a "
            "file on a local disk"
        )
    connection.execute("PRAGMA synchronous = FULL")  # a commit is on the disk
    if is_empty:
        _make_tables(connection, kind)
    for probe in kind.probes:
        connection.execute(probe).fetchone()


def _make_tables(connection: sqlite3.Connection, kind: FileKind) -> None:
    try:
        connection.executescript(
            f"BEGIN IMMEDIATE;\n{kind.tables}\n"
            f"PRAGMA application_id = {kind.application_id};\n"
            f"PRAGMA user_version = {kind.version};\nCOMMIT;"
        )
    except sqlite3.OperationalError:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        # Another process may have been faster; then the tables are there.
        if not _count_tables(connection):
            raise


def _count_tables(connection: sqlite3.Connection) -> int:
    (count,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    return int(count)


def _primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's code without its details; errors of Python's module have none."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF
