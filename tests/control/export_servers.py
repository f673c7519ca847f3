"""The exports of one model, as one server after the other has them, over one file."""

from __future__ import annotations

import shutil
import sqlite3
import time
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import trio

from pie_trio.control.export_recorder import ExportRecorder
from pie_trio.control.export_register import ExportRegister, open_export_register
from pie_trio.control.exports import Export, ExportIndex, Permission
from pie_trio.control.pages import PagePool

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    import pytest

NUM_PAGES, TIME_LIMIT_SECONDS = 8, 30.0


class WallClock:
    """The system's clock, which somebody sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.offset = 0.0
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + self.offset)


@dataclass
class Server:
    """A model's exports, as one server has them."""

    pool: PagePool
    index: ExportIndex
    register: ExportRegister
    recorder: ExportRecorder

    def new_export(
        self,
        name: str = "x",
        *,
        owner: str = "ann",
        users: set[str] | None = None,
        is_published: bool = False,
        is_persistent: bool = True,
        seconds_to_live: float | None = None,
        metadata: bytes = b"",
        num_pages: int = 2,
    ) -> Export:
        """Return an export of written pages, each of which it alone will hold."""
        pages = [self.pool.allocate() for _ in range(num_pages)]
        self.pool.bind(np.array(pages, np.int32))
        self.pool.positions[pages, 0] = 0
        now = trio.current_time()
        return Export(
            owner=owner,
            name=name,
            pages=pages,
            hidden=[None] * num_pages,
            permission=Permission(frozenset(users or ()), is_published),
            is_persistent=is_persistent,
            expires_at=None if seconds_to_live is None else now + seconds_to_live,
            metadata=metadata,
            instance="ann-1",
            used_at=now,
        )

    async def export(self, name: str = "x", **details: object) -> Export:
        """Export pages as an inferlet does that then ends."""
        export = self.new_export(name, **details)  # type: ignore[arg-type]
        pages = list(export.pages)
        try:
            if self.recorder.records(export):
                await self.recorder.add(export)
            else:
                self.index.add(export)
        finally:
            for page in pages:
                self.pool.release(page)
        return export

    def lose_engine(self) -> None:
        self.pool.lose_device()
        self.index.lose("the engine was lost: it was told to")

    async def written(self) -> None:
        """Return once all that was dropped is out of the file."""
        await self.export("written")
        await self.recorder.remove(self.index.find_own("ann", "written"))


@asynccontextmanager
async def serving(
    path: Path | None, *, locked_seconds: float = 5.0
) -> AsyncGenerator[Server]:
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_export_register(
            path, locked_seconds=locked_seconds
        ) as register:
            pool = PagePool(num_pages=NUM_PAGES, page_size=2)
            index = ExportIndex(
                pool, trio.current_time, model="tiny", forget=register.forget
            )
            recorder = ExportRecorder("tiny", index, register, trio.current_time)
            await recorder.restore()
            yield Server(pool, index, register, recorder)
            num_held = len(set(index.pages))
            assert pool.num_virtual == num_held, "what has failed holds nothing"


def names_in(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [row[0] for row in connection.execute("SELECT name FROM exports")]


def copy_as_killed(path: Path) -> Path:
    """Return a copy of a file that is open, as a server leaves it that is killed."""
    folder = path.parent / "killed"
    folder.mkdir()
    for part in path.parent.glob(f"{path.name}*"):
        shutil.copy(part, folder)
    return folder / path.name
