"""The rows of the store, its limits, and what SQLite's errors mean. Plain synchronous code."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pie_trio.errors import BadArgumentError, ConfigError, LimitError, StoreError

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

__all__ = ["LOCKED_SECONDS", "StoreLimits", "StoreTables", "is_locked", "open_tables"]

APPLICATION_ID: Final = 0x50696554
"""Of the file's header: "PieT"."""
SCHEMA_VERSION: Final = 1

LOCKED_SECONDS = 5.0
"""How long to wait for another process that has the file locked."""
RETRY_SECONDS = 0.01
"""Where SQLite does not wait by itself."""

# Keys are bytes: those of UTF-8 sort as the characters do, a prefix is a range of them, and
# NUL is nothing special. The usage of an owner is kept, so that a limit costs no scan.
SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE entries (owner TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL);
CREATE UNIQUE INDEX entries_by_key ON entries (owner, key);
CREATE TABLE usage (
    owner TEXT PRIMARY KEY, num_keys INTEGER NOT NULL, num_bytes INTEGER NOT NULL
) WITHOUT ROWID;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """What may be stored.

    Attributes:
        max_key_bytes: Of a key, as UTF-8.
        max_value_bytes: Of a value.
        max_keys: Of an owner.
        max_owner_bytes: Keys and values of an owner together.
        max_file_bytes: Of the whole file, rounded to pages of 4 KiB; None for no limit.
    """

    max_key_bytes: int = 1024
    max_value_bytes: int = 1 << 20
    max_keys: int = 100_000
    max_owner_bytes: int = 256 << 20
    max_file_bytes: int | None = None


class StoreTables:
    """The rows, in a connection that :func:`open_tables` has made."""

    def __init__(
        self, connection: sqlite3.Connection, *, name: str, limits: StoreLimits
    ) -> None:
        self._connection = connection
        self.name, self.limits = name, limits

    def close(self) -> None:
        """Close the file, with everything in its one place."""
        self._connection.close()

    @contextmanager
    def transaction(self, *, is_write: bool) -> Generator[None]:
        """Commit what the block does, durably; nothing of it if the block raises."""
        self._connection.execute("BEGIN IMMEDIATE" if is_write else "BEGIN")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # some errors have rolled back already
                self._connection.execute("ROLLBACK")
            raise

    def get(self, owner: str, key: str) -> bytes | None:
        """Return the value of a key, None if there is none."""
        row = self._connection.execute(
            "SELECT value FROM entries WHERE owner = ? AND key = ?",
            (owner, self._key(key)),
        ).fetchone()
        return None if row is None else bytes(row[0])

    def exists(self, owner: str, key: str) -> bool:
        """Say whether a key has a value."""
        return self._stored_bytes(owner, self._key(key)) is not None

    def list_keys(
        self, owner: str, *, prefix: str, after: str, limit: int
    ) -> list[str]:
        """Return at most ``limit`` sorted keys after ``after`` that begin with ``prefix``."""
        if limit < 1:
            raise BadArgumentError(f"limit is {limit}: ask for one key or more")
        first = _encode(prefix)
        rows = self._connection.execute(
            "SELECT key FROM entries WHERE owner = ? AND key >= ? AND key < ? AND key > ?"
            " ORDER BY key LIMIT ?",
            (owner, first, _after_prefix(first), _encode(after), min(limit, 1 << 31)),
        )
        return [bytes(row[0]).decode() for row in rows]

    def set(self, owner: str, key: str, value: bytes) -> None:
        """Give a key a value."""
        data, limits = self._key(key), self.limits
        if len(value) > limits.max_value_bytes:
            raise LimitError(
                f"a value of {len(value)} bytes is too large for the store, at most "
                f"{limits.max_value_bytes} are allowed: split it over several keys"
            )
        old_bytes = self._stored_bytes(owner, data)
        num_keys, num_bytes = self.usage(owner)
        num_keys += old_bytes is None
        num_bytes += len(data) + len(value) - (old_bytes or 0)
        if num_keys > limits.max_keys:
            raise LimitError(
                f"{owner} has {limits.max_keys} keys in the store, which is as many as "
                "allowed: delete some first"
            )
        # What makes an owner's part smaller is fine, even after limits were lowered.
        if num_bytes > limits.max_owner_bytes and num_bytes > self.usage(owner)[1]:
            raise LimitError(
                f"{owner} would have {num_bytes} bytes in the store, but "
                f"{limits.max_owner_bytes} are allowed: delete some keys first"
            )
        self._connection.execute(
            "INSERT INTO entries VALUES (?, ?, ?)"
            " ON CONFLICT (owner, key) DO UPDATE SET value = excluded.value",
            (owner, data, value),
        )
        self._set_usage(owner, num_keys, num_bytes)

    def delete(self, owner: str, key: str) -> bool:
        """Remove a key and say whether it was there."""
        data = self._key(key)
        old_bytes = self._stored_bytes(owner, data)
        if old_bytes is None:
            return False
        num_keys, num_bytes = self.usage(owner)
        self._connection.execute(
            "DELETE FROM entries WHERE owner = ? AND key = ?", (owner, data)
        )
        self._set_usage(owner, num_keys - 1, num_bytes - old_bytes)
        return True

    def usage(self, owner: str) -> tuple[int, int]:
        """Return how many keys an owner has, and their bytes with the values."""
        row = self._connection.execute(
            "SELECT num_keys, num_bytes FROM usage WHERE owner = ?", (owner,)
        ).fetchone()
        return (0, 0) if row is None else (int(row[0]), int(row[1]))

    def explain(self, error: sqlite3.Error) -> StoreError:
        """Return what to tell an inferlet. It does not name the file, which is not its own."""
        return StoreError(f"the store failed: {_reason(error)}")

    def _stored_bytes(self, owner: str, key: bytes) -> int | None:
        row = self._connection.execute(
            "SELECT length(key) + length(value) FROM entries WHERE owner = ? AND key = ?",
            (owner, key),
        ).fetchone()
        return None if row is None else int(row[0])

    def _set_usage(self, owner: str, num_keys: int, num_bytes: int) -> None:
        self._connection.execute(
            "INSERT INTO usage VALUES (?, ?, ?) ON CONFLICT (owner) DO UPDATE"
            " SET num_keys = excluded.num_keys, num_bytes = excluded.num_bytes",
            (owner, num_keys, num_bytes),
        )

    def _key(self, key: str) -> bytes:
        data = _encode(key)
        if not data:
            raise BadArgumentError("a key of the store is empty: name it")
        if len(data) > self.limits.max_key_bytes:
            raise LimitError(
                f"a key of {len(data)} bytes is too long for the store: at most "
                f"{self.limits.max_key_bytes} are allowed"
            )
        return data


def open_tables(
    path: Path | None,
    limits: StoreLimits,
    *,
    locked_seconds: float = LOCKED_SECONDS,
) -> StoreTables:
    """Open a store's file, making it if needed, readable by its owner only.

    Args:
        path: None for a store in memory.
        limits: What may be stored.
        locked_seconds: How long to wait for another process that has the file locked.

    Raises:
        ConfigError: The file cannot be opened or made, is damaged, is locked, or is none of
            ours.
    """
    name = str(path) if path else ":memory:"
    if path:
        _make_private(path)
    try:
        connection = sqlite3.connect(
            name,
            timeout=locked_seconds,
            isolation_level=None,  # we say BEGIN and COMMIT ourselves
            check_same_thread=False,  # the limiter of the store sees to that
        )
    except sqlite3.Error as error:
        raise ConfigError(f"cannot open the store {name}: {_reason(error)}") from error
    try:
        _prepare_patiently(connection, name, limits, locked_seconds=locked_seconds)
    except sqlite3.Error as error:
        connection.close()
        raise ConfigError(f"cannot use the store {name}: {_reason(error)}") from error
    except BaseException:
        connection.close()
        raise
    return StoreTables(connection, name=name, limits=limits)


def _make_private(path: Path) -> None:
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
            f"cannot open the store {path}: {error.strerror}: name a file that you may "
            "write, in a directory that is there"
        ) from error


def _prepare_patiently(
    connection: sqlite3.Connection,
    name: str,
    limits: StoreLimits,
    *,
    locked_seconds: float,
) -> None:
    """Prepare a connection while others prepare theirs.

    SQLite does not wait by itself for who changes the journal's mode, as all who open a new
    file at once do.
    """
    deadline = time.monotonic() + locked_seconds
    while True:
        try:
            _prepare(connection, name, limits)
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if not is_locked(error) or time.monotonic() > deadline:
                raise
        else:
            return
        time.sleep(RETRY_SECONDS)


def _prepare(connection: sqlite3.Connection, name: str, limits: StoreLimits) -> None:
    """Set up a connection, and the tables in an empty file."""
    # In this order: another process may be making the tables, all of it in one transaction.
    is_empty = not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[
        0
    ]
    found_id, found_version = (
        int(connection.execute(f"PRAGMA {what}").fetchone()[0])
        for what in ("application_id", "user_version")
    )
    if not is_empty and found_id != APPLICATION_ID:
        raise ConfigError(
            f"{name} is a database of another application: name a new file for the store"
        )
    if found_version > SCHEMA_VERSION:
        raise ConfigError(
            f"the store {name} was written by a newer Pie: use that one, or name a new file"
        )
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode not in ("wal", "memory"):
        raise ConfigError(
            f"cannot use the store {name}: its file system has no shared memory: name a "
            "file on a local disk"
        )
    connection.execute("PRAGMA synchronous = FULL")  # a commit is on the disk
    if limits.max_file_bytes is not None:
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
        max_pages = max(1, limits.max_file_bytes // page_bytes)
        connection.execute(f"PRAGMA max_page_count = {max_pages}")
    if is_empty:
        _make_tables(connection)
    connection.execute("SELECT owner, key, value FROM entries LIMIT 1").fetchone()
    connection.execute(
        "SELECT owner, num_keys, num_bytes FROM usage LIMIT 1"
    ).fetchone()


def _make_tables(connection: sqlite3.Connection) -> None:
    try:
        connection.executescript(SCHEMA)
    except sqlite3.OperationalError:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        # Another process may have been faster; then the tables are there.
        if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            raise


def _encode(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise BadArgumentError(
            f"{text[:80]!r} is no key of the store: it has half of a surrogate pair"
        ) from error


def _after_prefix(prefix: bytes) -> bytes:
    """Return the first key after all that begin with a prefix of UTF-8, which has no 0xFF."""
    return prefix[:-1] + bytes([prefix[-1] + 1]) if prefix else b"\xff"


def is_locked(error: sqlite3.Error) -> bool:
    """Say whether another process has the file locked, which was waited for already."""
    return _primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's code without its details; errors of Python's module have none."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF


def _reason(error: sqlite3.Error) -> str:
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
            return "it is full: free space on its disk, delete keys, or raise its limit"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_CANTOPEN:
            return (
                "it may not be written: check the mode and the owner of its directory"
            )
        case sqlite3.SQLITE_IOERR:
            return f"its disk failed ({error}): check that it is there and not full"
        case _:
            return str(error)
