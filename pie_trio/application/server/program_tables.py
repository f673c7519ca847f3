"""The rows of the uploaded programs, in SQLite. Plain synchronous code."""

from __future__ import annotations

import os
import sqlite3
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from pie_trio.application.server.failures import ProgramStoreError, StorageFullError
from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

__all__ = ["ProgramRow", "ProgramTables", "open_program_tables"]

APPLICATION_ID: Final = 0x50696550
"""Of the file's header: "PieP"."""
SCHEMA_VERSION: Final = 1
LOCKED_SECONDS = 5.0

SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE programs (
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    digest TEXT NOT NULL,
    num_bytes INTEGER NOT NULL,
    uploaded_at REAL NOT NULL,
    PRIMARY KEY (owner, name)
) WITHOUT ROWID;
CREATE INDEX programs_by_hash ON programs (sha256);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""


@dataclass(frozen=True, slots=True)
class ProgramRow:
    """A program that was uploaded.

    Attributes:
        owner: Whose it is.
        name: What the owner calls it.
        sha256: Of what was sent, which names the file.
        digest: Of the modules in it; of a component, as ``sha256``.
        num_bytes: Of what was sent.
        uploaded_at: In seconds since 1970.
    """

    owner: str
    name: str
    sha256: str
    digest: str
    num_bytes: int
    uploaded_at: float

    @property
    def is_component(self) -> bool:
        """It is compiled, and not sent as source."""
        return self.digest == self.sha256


class ProgramTables:
    """The rows, in a connection that :func:`open_program_tables` has made.

    Every change is on the disk when its method returns, or has not happened at all.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def rows(self) -> list[ProgramRow]:
        """Return all programs."""
        with _explained():
            found = self._connection.execute(
                "SELECT owner, name, sha256, digest, num_bytes, uploaded_at FROM programs"
            )
            return [ProgramRow(*row) for row in found]

    def put(self, row: ProgramRow) -> None:
        """Add a program, or replace the one of its name.

        Raises:
            StorageFullError: There is no room on the disk.
            ProgramStoreError: The file cannot be written.
        """
        with _explained():
            self._connection.execute(
                "INSERT INTO programs VALUES (:owner, :name, :sha256, :digest, :num_bytes,"
                " :uploaded_at) ON CONFLICT (owner, name) DO UPDATE SET"
                " sha256 = excluded.sha256, digest = excluded.digest,"
                " num_bytes = excluded.num_bytes, uploaded_at = excluded.uploaded_at",
                asdict(row),
            )

    def delete(self, owner: str, name: str) -> None:
        """Remove a program. Raises what :meth:`put` does."""
        with _explained():
            self._connection.execute(
                "DELETE FROM programs WHERE owner = ? AND name = ?", (owner, name)
            )


def open_program_tables(path: Path) -> ProgramTables:
    """Open the file, making it if needed, readable by its owner only.

    Raises:
        ConfigError: It cannot be opened or made, is damaged, or is none of ours.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    connection: sqlite3.Connection | None = None
    try:
        connection = sqlite3.connect(
            path,
            timeout=LOCKED_SECONDS,
            isolation_level=None,  # every statement is a transaction
            check_same_thread=False,  # the limiter of the store sees to that
        )
        _prepare(connection, path)
    except sqlite3.Error as error:
        _close(connection)
        raise ConfigError(
            f"cannot use {path}, the list of programs: {error}: restore a copy, or move it "
            "away and deploy the programs again"
        ) from error
    except BaseException:
        _close(connection)
        raise
    return ProgramTables(connection)


def _close(connection: sqlite3.Connection | None) -> None:
    if connection is not None:
        connection.close()


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    is_empty = not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[
        0
    ]
    found_id, found_version = (
        int(connection.execute(f"PRAGMA {what}").fetchone()[0])
        for what in ("application_id", "user_version")
    )
    if not is_empty and found_id != APPLICATION_ID:
        raise ConfigError(
            f"{path} is a database of another application: choose another --data-dir"
        )
    if found_version > SCHEMA_VERSION:
        raise ConfigError(
            f"{path} was written by a newer Pie: use that one, or another --data-dir"
        )
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise ConfigError(
            f"cannot use {path}: its file system has no shared memory: choose a --data-dir "
            "on a local disk"
        )
    connection.execute("PRAGMA synchronous = FULL")  # a commit is on the disk
    if is_empty:
        connection.executescript(SCHEMA)
    connection.execute("SELECT sha256 FROM programs LIMIT 1").fetchone()


@contextmanager
def _explained() -> Generator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        if code & 0xFF == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_WRITE:
            raise StorageFullError("the list of programs") from error
        raise ProgramStoreError(f"the list of programs failed: {error}") from error
