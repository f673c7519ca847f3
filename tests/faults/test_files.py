"""A disk that is full, and files that another process has locked, under a whole server."""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from pie_trio.application.server import keys_tables, program_tables
from pie_trio.application.server.failures import KeyStoreError
from pie_trio.application.server.keys import make_key
from pie_trio.application.server.keys_tables import open_key_tables
from tests.application.conftest import OpenLauncher, program_of
from tests.application.server.clients import text_of
from tests.application.server.test_programs import file_limit

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from tests.application.server.conftest import OpenServer

STORES = program_of(
    "for _ in range(3):\n"
    "    try:\n"
    "        await store.set('new', b'x' * 100_000)\n"
    "    except FailedError as error:\n"
    "        await send(str(error))\n"
    "    else:\n"
    "        await send('stored')\n"
    "    await receive()\n"
    "return [await store.get_text('old'), await store.list_keys()]\n"
)
GENERATES = program_of(
    "async with Context() as context:\n"
    "    context.append(range(1, 17))\n"
    "    return await context.generate(max_tokens=40, stop_tokens=[]).tokens()\n"
)


async def test_a_full_disk_fails_what_a_program_stores_and_nothing_else(
    open_fake: OpenLauncher, tmp_path: Path
) -> None:
    path = tmp_path / "store.db"
    with trio.fail_after(60):
        async with open_fake(services={"store_path": path}) as launcher:
            before = program_of("await store.set('old', 'kept')")
            for program in (before, STORES, GENERATES):
                await launcher.compile(program)
            await launcher.prepare(before, {}).run()
            instance, results = launcher.prepare(STORES, {}), list[str]()

            async def run() -> None:
                results.append(await instance.run())

            async with trio.open_nursery() as nursery:
                outbox, inbox = instance.session.outbox, instance.session.inbox
                with file_limit(path.stat().st_size):
                    nursery.start_soon(run)
                    assert "full" in str(await outbox.take()), "it says why"
                    alone = await launcher.prepare(GENERATES, {}).run()
                    await inbox.put("again")
                    assert "full" in str(await outbox.take())
                await inbox.put("again")
                assert await outbox.take() == ["stored"]
                await inbox.put("end")
            assert results == ['["kept", ["new", "old"]]']
            assert await launcher.prepare(GENERATES, {}).run() == alone


async def test_a_full_disk_makes_no_key_and_keeps_those_there_are(
    open_server: OpenServer,
) -> None:
    async with open_server(has_keys=True) as served:
        ann = served.user("ann")
        key, text = make_key("bob", ["launch"], created_at=0.0)
        with open_key_tables(served.data) as tables:
            with file_limit(0), pytest.raises(KeyStoreError, match=r"full|I/O"):
                tables.add(key)
            assert (await ann.get("/v1/programs")).status == 200
            bob = served.api.with_key(text)
            assert (await bob.get("/v1/programs")).status == 401
            tables.add(key)
        assert (await bob.get("/v1/programs")).status == 200


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Have a database locked for writing, as another process would."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


async def test_a_lock_on_the_programs_fails_uploads_and_not_launches(
    open_server: OpenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program_tables, "LOCKED_SECONDS", 0.01)
    async with open_server() as served:
        await served.api.deploy("old", "return 1")
        with locked(served.data / "programs.db"):
            for name in ("new", "old"):
                path = f"/v1/programs/{name}"
                answer = await served.api.ask("PUT", path, text_of("return 2"))
                assert answer.status == 500
                assert "locked" in answer.error["message"]
            answer = await served.api.ask("DELETE", "/v1/programs/old")
            assert "locked" in answer.error["message"]
            assert (await served.api.run("old"))["result"] == 1
        await served.api.deploy("old", "return 2")
        assert (await served.api.run("old"))["result"] == 2


async def test_a_lock_on_the_keys_keeps_nobody_out(
    open_server: OpenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_tables, "LOCKED_SECONDS", 0.01)
    async with open_server(has_keys=True) as served:
        ann = served.user("ann")
        key, text = make_key("bob", ["launch"], created_at=0.0)
        with open_key_tables(served.data) as tables:
            with locked(served.data / "keys.db"):
                assert (await ann.get("/v1/programs")).status == 200
                with pytest.raises(KeyStoreError, match="locked"):
                    tables.add(key)
            tables.add(key)
        bob = served.api.with_key(text)
        assert (await bob.get("/v1/programs")).status == 200
