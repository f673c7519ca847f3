"""The rows of persistent exports, which outlive the server, as their pages do not.

Plain synchronous code: :mod:`pie_trio.control.export_register` runs it in a thread.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pie_trio.control.exported import Permission
from pie_trio.control.sqlite_files import (
    LOCKED_SECONDS,
    FileKind,
    open_database,
    transaction,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable
    from contextlib import AbstractContextManager
    from pathlib import Path

__all__ = ["EXPORTS_FILE", "ExportRow", "ExportTables", "open_export_tables"]

EXPORTS_FILE = "exports.db"

COLUMNS: Final = (
    "number, model, owner, name, is_published, users, instance, num_pages, made_at,"
    " expires_at, metadata"
)
KIND: Final = FileKind(
    noun="the list of exports",
    application_id=0x50696545,  # "PieE"
    version=1,
    tables="""
CREATE TABLE exports (
    number INTEGER NOT NULL PRIMARY KEY,
    model TEXT NOT NULL,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    is_published INTEGER NOT NULL,
    users TEXT NOT NULL,
    instance TEXT NOT NULL,
    num_pages INTEGER NOT NULL,
    made_at REAL NOT NULL,
    expires_at REAL,
    metadata BLOB NOT NULL
);
CREATE UNIQUE INDEX exports_by_name ON exports (model, owner, name);
""",
    probes=(f"SELECT {COLUMNS} FROM exports LIMIT 1",),
    remedy="choose another --data-dir",
)


@dataclass(frozen=True, slots=True)
class ExportRow:
    """A persistent export without its pages.

    Attributes:
        number: Of this row: one that replaces it under its name has another number.
        num_pages: That it has, or had.
        made_at: In seconds since 1970.
        expires_at: In seconds since 1970; None if it stays.
    """

    number: int
    model: str
    owner: str
    name: str
    permission: Permission
    instance: str
    num_pages: int
    made_at: float
    expires_at: float | None
    metadata: bytes

    def seconds_left(self, now: float) -> float | None:
        """Return how long it stays; None for ever.

        Never longer than from the start, should the clock have been set back since.

        Args:
            now: In seconds since 1970.
        """
        if self.expires_at is None:
            return None
        return min(self.expires_at - now, self.expires_at - self.made_at)


class ExportTables:
    """The rows, in a connection that :func:`open_export_tables` has made."""

    def __init__(self, connection: sqlite3.Connection, *, name: str) -> None:
        self._connection, self.name = connection, name

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def transaction(self) -> AbstractContextManager[None]:
        """Commit what the block does, durably; nothing of it if the block raises."""
        return transaction(self._connection, is_write=True)

    def last_number(self) -> int:
        """Return the highest number of a row; 0 if there is none."""
        found = self._connection.execute("SELECT max(number) FROM exports").fetchone()
        return int(found[0] or 0)

    def rows(self, model: str) -> list[ExportRow]:
        """Return the exports of a model, oldest first."""
        found = self._connection.execute(
            f"SELECT {COLUMNS} FROM exports WHERE model = ? ORDER BY number",
            (model,),
        )
        return [_read(*row) for row in found]

    def put(self, row: ExportRow) -> None:
        """Add an export, or replace the owner's of its name."""
        self._connection.execute(
            f"INSERT OR REPLACE INTO exports ({COLUMNS})"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(row.number, row.model, row.owner, row.name),
                *(
                    row.permission.is_published,
                    json.dumps(sorted(row.permission.users)),
                ),
                *(
                    row.instance,
                    row.num_pages,
                    row.made_at,
                    row.expires_at,
                    row.metadata,
                ),
            ),
        )

    def delete(self, numbers: Iterable[int]) -> None:
        """Remove those of these rows that are there."""
        self._connection.executemany(
            "DELETE FROM exports WHERE number = ?", [(number,) for number in numbers]
        )


def open_export_tables(
    path: Path | None, *, locked_seconds: float = LOCKED_SECONDS
) -> ExportTables:
    """Open the file, making it if needed, readable by its owner only.

    Args:
        path: None for tables in memory.
        locked_seconds: How long to wait for another process that has the file locked.

    Raises:
        ConfigError: It cannot be opened or made, is damaged, is locked, or is none of ours.
    """
    connection = open_database(path, KIND, locked_seconds=locked_seconds)
    return ExportTables(connection, name=str(path) if path else ":memory:")


def _read(
    number: int,
    model: str,
    owner: str,
    name: str,
    is_published: int,
    users: str,
    *rest: Any,
) -> ExportRow:
    permission = Permission(frozenset(json.loads(users)), bool(is_published))
    return ExportRow(number, model, owner, name, permission, *rest)
