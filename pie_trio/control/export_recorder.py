"""Makes, takes back and restores the exports of one model that outlive the server.

Their pages do not: an export of an earlier server is as one whose engine was lost.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pie_trio.control.export_tables import ExportRow
from pie_trio.control.exported import Export

if TYPE_CHECKING:
    from collections.abc import Callable

    from pie_trio.control.export_register import ExportRegister
    from pie_trio.control.exports import ExportIndex

__all__ = ["ExportRecorder"]

RESTARTED = "the server has been started again since"


@dataclass(frozen=True, slots=True)
class ExportRecorder:
    """Keeps an index and a register the same.

    Attributes:
        model: Its name.
        index: What there is in memory.
        register: What there is on the disk; None where nothing outlives the server.
        now: The time, on trio's clock.
    """

    model: str
    index: ExportIndex
    register: ExportRegister | None
    now: Callable[[], float]

    def records(self, export: Export) -> bool:
        """Say whether an export is to outlive the server: then :meth:`add` makes it."""
        return (
            self.register is not None and export.is_persistent and not export.is_cache
        )

    async def add(self, export: Export) -> None:
        """Make an export that is recorded: there for others once it is on the disk.

        Whoever is cancelled meanwhile may or may not have made it.

        Raises:
            BadArgumentError: The name or the pages are not usable.
            LimitError: The owner has too many.
            StoreError: It cannot be recorded; everything is as it was.
        """
        assert self.register is not None, "checked by records()"
        self.index.admit(export)
        export.record = self.register.new_number()

        def settle(is_recorded: bool) -> None:
            if is_recorded:
                self.index.adopt(export)
            else:
                self.index.turn_down(export)

        await self.register.put(self._row(export, export.record), settle)

    async def remove(self, export: Export) -> None:
        """Take an export back that is recorded.

        Raises:
            StoreError: The disk cannot be written; everything is as it was.
        """
        assert self.register is not None, "it was recorded"
        assert export.record is not None, "it was recorded"

        def settle(is_deleted: bool) -> None:
            if is_deleted:
                self.index.drop(export)

        await self.register.delete(export.record, settle)

    async def restore(self) -> None:
        """Add what an earlier server had recorded and whose time is not over.

        Raises:
            ConfigError: The register cannot be read.
        """
        if self.register is None:
            return
        for row in await self.register.take_rows(self.model):
            self.index.restore(self._export(row))
        self.index.expire()

    def _row(self, export: Export, number: int) -> ExportRow:
        left = None if export.expires_at is None else export.expires_at - self.now()
        return ExportRow(
            number=number,
            model=self.model,
            owner=export.owner,
            name=export.name,
            permission=export.permission,
            instance=export.instance,
            num_pages=len(export.pages),
            made_at=export.made_at,
            expires_at=None if left is None else export.made_at + left,
            metadata=export.metadata,
        )

    def _export(self, row: ExportRow) -> Export:
        now, seconds_left = self.now(), row.seconds_left(time.time())
        return Export(
            owner=row.owner,
            name=row.name,
            pages=[],
            hidden=[],
            permission=row.permission,
            is_persistent=True,
            expires_at=None if seconds_left is None else now + seconds_left,
            metadata=row.metadata,
            instance=row.instance,
            used_at=now - max(time.time() - row.made_at, 0.0),
            made_at=row.made_at,
            record=row.number,
            loss=RESTARTED,
            num_lost=row.num_pages,
        )
