"""The rows of the store, and its limits. Plain synchronous code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pie_trio.control.sqlite_files import (
    LOCKED_SECONDS,
    FileKind,
    is_locked,
    open_database,
    reason_of,
    transaction,
)
from pie_trio.errors import BadArgumentError, LimitError, StoreError

if TYPE_CHECKING:
    import sqlite3
    from contextlib import AbstractContextManager
    from pathlib import Path

__all__ = ["LOCKED_SECONDS", "StoreLimits", "StoreTables", "is_locked", "open_tables"]

# Keys are bytes: those of UTF-8 sort as the characters do, a prefix is a range of them, and
# NUL is nothing special. The usage of an owner is kept, so that a limit costs no scan.
KIND: Final = FileKind(
    noun="the store",
    application_id=0x50696554,  # "PieT"
    version=1,
    tables="""
CREATE TABLE entries (owner TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL);
CREATE UNIQUE INDEX entries_by_key ON entries (owner, key);
CREATE TABLE usage (
    owner TEXT PRIMARY KEY, num_keys INTEGER NOT NULL, num_bytes INTEGER NOT NULL
) WITHOUT ROWID;
""",
    probes=(
        "SELECT owner, key, value FROM entries LIMIT 1",
        "SELECT owner, num_keys, num_bytes FROM usage LIMIT 1",
    ),
    remedy="name a new file",
)


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

    def transaction(self, *, is_write: bool) -> AbstractContextManager[None]:
        """Commit what the block does, durably; nothing of it if the block raises."""
        return transaction(self._connection, is_write=is_write)

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
        return StoreError(f"the store failed: {reason_of(error)}")

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
    connection = open_database(
        path,
        KIND,
        max_file_bytes=limits.max_file_bytes,
        locked_seconds=locked_seconds,
    )
    return StoreTables(
        connection, name=str(path) if path else ":memory:", limits=limits
    )


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
