"""The file of the API keys, in SQLite. Plain synchronous code.

It is beside the programs in the data directory. A server reads it while ``pie keys`` writes it.
"""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from pie_trio.application.server.failures import KeyStoreError
from pie_trio.application.server.keys import Key
from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

__all__ = ["KEYS_FILE", "KeyTables", "open_key_tables"]

KEYS_FILE = "keys.db"
APPLICATION_ID: Final = 0x5069654B
"""Of the file's header: "PieK"."""
SCHEMA_VERSION: Final = 1
LOCKED_SECONDS = 5.0

SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS keys (
    key_id TEXT NOT NULL PRIMARY KEY,
    user TEXT NOT NULL,
    scopes TEXT NOT NULL,
    limits TEXT NOT NULL,
    created_at REAL NOT NULL,
    digest BLOB NOT NULL
) WITHOUT ROWID;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""


class KeyTables:
    """The keys, in a connection that :func:`open_key_tables` has made.

    Every change is on the disk when its method returns, or has not happened at all.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def version(self) -> int:
        """Return a number that is another one once another connection has changed something.

        Raises:
            KeyStoreError: The file cannot be read.
        """
        with _explained():
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def all(self) -> list[Key]:
        """Return all keys, oldest first. Raises what :meth:`version` does."""
        with _explained():
            rows = self._connection.execute(
                "SELECT key_id, user, scopes, limits, created_at, digest FROM keys"
                " ORDER BY created_at, key_id"
            ).fetchall()
        return [
            Key(
                key_id,
                user,
                frozenset(scopes.split()),
                json.loads(limits),
                created_at,
                digest,
            )
            for key_id, user, scopes, limits, created_at, digest in rows
        ]

    def add(self, key: Key) -> None:
        """Add a key.

        Raises:
            KeyStoreError: The file cannot be written, or has a key of that id.
        """
        with _explained():
            self._connection.execute(
                "INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?)",
                (
                    key.key_id,
                    key.user,
                    " ".join(sorted(key.scopes)),
                    json.dumps(dict(key.limits)),
                    key.created_at,
                    key.digest,
                ),
            )

    def remove(self, key_id: str) -> bool:
        """Remove a key; say whether it was there. Raises what :meth:`add` does."""
        with _explained():
            done = self._connection.execute(
                "DELETE FROM keys WHERE key_id = ?", (key_id,)
            )
        return done.rowcount > 0


@contextmanager
def open_key_tables(directory: Path) -> Generator[KeyTables]:
    """Open the keys of a data directory, making both if needed, for their owner only.

    Raises:
        ConfigError: They cannot be opened or made, are damaged, or are none of ours.
    """
    path = directory / KEYS_FILE
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror}: choose another directory with --data-dir "
            "or PIE_DATA_DIR"
        ) from error
    connection: sqlite3.Connection | None = None
    try:
        try:
            connection = sqlite3.connect(
                path, timeout=LOCKED_SECONDS, isolation_level=None
            )
            _prepare(connection, path)
        except sqlite3.Error as error:
            raise ConfigError(
                f"cannot use {path}, the list of keys: {error}: restore a copy, or move it "
                "away and make the keys again"
            ) from error
        yield KeyTables(connection)
    finally:
        if connection is not None:
            connection.close()


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    found_id, found_version, num_tables = (
        int(connection.execute(query).fetchone()[0])
        for query in (
            "PRAGMA application_id",
            "PRAGMA user_version",
            "SELECT count(*) FROM sqlite_schema",
        )
    )
    if num_tables and found_id != APPLICATION_ID:
        raise ConfigError(
            f"{path} is a database of another application: choose another --data-dir"
        )
    if found_version > SCHEMA_VERSION:
        raise ConfigError(
            f"{path} was written by a newer Pie: use that one, or another --data-dir"
        )
    # Without waiting for whoever writes, a reader reads what was there before.
    connection.execute("PRAGMA journal_mode = WAL").fetchone()
    connection.execute("PRAGMA synchronous = FULL")  # a commit is on the disk
    if not num_tables:
        connection.executescript(SCHEMA)  # two that come at once do no harm
    connection.execute("SELECT key_id FROM keys LIMIT 1").fetchone()


@contextmanager
def _explained() -> Generator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise KeyStoreError(f"the list of keys failed: {error}") from error
