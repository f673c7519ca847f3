"""A disk that is full, a file that is locked, and exporters that are cancelled meanwhile."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from pie_trio.control import export_limits
from pie_trio.control.export_register import ExportRegister, open_export_register
from pie_trio.control.export_tables import ExportRow
from pie_trio.control.exports import Permission
from pie_trio.errors import (
    ConfigError,
    ExportLostError,
    LimitError,
    NotFoundError,
    StoreError,
)
from tests.control.export_servers import TIME_LIMIT_SECONDS, names_in, serving

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "exports.db"


async def test_a_full_disk_is_an_error_and_changes_nothing(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(path) as server:
        await server.export(metadata=b"old")
        server.register._tables._connection.execute("PRAGMA max_page_count = 1")
        with pytest.raises(StoreError, match="full"):
            await server.export(metadata=bytes(1 << 20))
        assert "exports.db" in caplog.text
        assert server.index.take("ann", "x", 2).metadata == b"old"
        for page in server.index.pages:
            server.pool.release(page)
        await server.export("short", is_persistent=False)
        server.register._tables._connection.execute("PRAGMA max_page_count = 9999")
        await server.export(metadata=b"new")
    async with serving(path) as server:
        assert server.index.find("ann", "x").metadata == b"new"


async def test_one_that_finds_no_room_does_not_fail_the_others_on_a_full_disk(
    path: Path,
) -> None:
    async with serving(path) as server:
        server.register._tables._connection.execute("PRAGMA max_page_count = 20")
        errors = dict[str, StoreError]()

        async def export(name: str, size: int) -> None:
            try:
                await server.export(name, metadata=bytes(size))
            except StoreError as error:
                errors[name] = error

        async with trio.open_nursery() as nursery:
            for name, size in (("a", 10), ("b", 1 << 20), ("c", 10)):
                nursery.start_soon(export, name, size)
        assert errors.keys() == {"b"}
        assert sorted(e.name for e in server.index.list_for("ann", "")) == ["a", "c"]
    assert sorted(names_in(path)) == ["a", "c"]


async def test_a_locked_file_holds_up_who_exports_and_nobody_else(path: Path) -> None:
    async with serving(path) as server:
        await server.export("old")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.export)
                await wait_all_tasks_blocked()  # the loop runs
                with pytest.raises(NotFoundError):
                    server.index.find("ann", "x")
                server.index.take("ann", "old", 2)
                await server.export("new", is_persistent=False)
                for page in server.index.find("ann", "old").pages:
                    server.pool.release(page)
                server.index.drop(server.index.find("ann", "old"))
                other.execute("ROLLBACK")
        assert server.index.find("ann", "x").pages
        await server.written()
        assert names_in(path) == ["x"], "what was dropped meanwhile is out of the file"


async def test_a_file_that_stays_locked_is_an_error_and_changes_nothing(
    path: Path,
) -> None:
    async with serving(path, locked_seconds=0.01) as server:
        await server.export()
        kept = server.index.find_own("ann", "x")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match="locked"):
                await server.export(metadata=b"new")
            with pytest.raises(StoreError, match="locked"):
                await server.recorder.remove(kept)
            assert server.index.find("ann", "x") is kept
            server.index.drop(kept)  # nobody waits for this one
            with pytest.raises(StoreError, match="locked"):
                await server.export("y")
        await server.written()
        assert names_in(path) == [], "what could not be dropped was tried again"


async def test_of_two_exports_of_one_name_the_file_has_what_memory_has(
    path: Path,
) -> None:
    async with serving(path) as server:
        async with trio.open_nursery() as nursery:
            for number in range(3):
                export = partial(server.export, metadata=bytes([number]))
                nursery.start_soon(export)
        (found,) = server.index.list_for("ann", "")
    async with serving(path) as server:
        assert server.index.find("ann", "x").metadata == found.metadata


async def test_who_is_cancelled_has_made_an_export_or_has_not(path: Path) -> None:
    async with serving(path) as server:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.export, "first")
                await wait_all_tasks_blocked()  # its transaction has begun
                nursery.start_soon(server.export, "second")
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            other.execute("ROLLBACK")
        await server.written()
        assert [e.name for e in server.index.list_for("ann", "")] == ["first"]
    assert names_in(path) == ["first"]


async def test_pages_that_are_lost_before_they_are_recorded_are_lost(
    path: Path,
) -> None:
    async with serving(path) as server:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.export)
                await wait_all_tasks_blocked()
                server.lose_engine()
                other.execute("ROLLBACK")
        with pytest.raises(ExportLostError, match="it was told to"):
            server.index.take("ann", "x", 2)


async def test_a_limit_is_checked_before_anything_is_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_limits, "MAX_USERS", 2)
    async with serving(path) as server:
        with pytest.raises(LimitError, match="at most 2 users"):
            await server.export(users={"bob", "cid", "dan"})
    assert names_in(path) == []


async def test_a_damaged_file_is_refused_by_its_name(path: Path) -> None:
    await trio.Path(path).write_text("no database, but as long as one" * 40)
    with pytest.raises(
        ConfigError, match=r"the list of exports .*exports\.db: .*damag"
    ):
        async with open_export_register(path):
            pass


async def test_a_closed_register_refuses_and_gives_pages_back() -> None:
    async with serving(None) as server:
        server.register.close()
        with pytest.raises(StoreError, match="the server stops"):
            await server.export()
        assert len(server.index) == 0


async def test_whoever_waits_when_a_register_closes_is_told_once() -> None:
    settled, refused = list[bool](), list[StoreError]()

    async def put(register: ExportRegister) -> None:
        row = ExportRow(1, "tiny", "ann", "x", Permission(), "i", 1, 0.0, None, b"")
        try:
            await register.put(row, settled.append)
        except StoreError as error:
            refused.append(error)

    with trio.fail_after(TIME_LIMIT_SECONDS):
        for number in range(20):
            async with trio.open_nursery() as nursery:
                async with open_export_register(None) as register:
                    nursery.start_soon(put, register)
                    for _ in range(number % 5):  # so far it comes
                        await trio.lowlevel.checkpoint()
            assert len(settled) == number + 1
    assert set(settled) == {True, False}
    assert len(refused) == settled.count(False)
