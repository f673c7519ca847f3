"""Pages under names, between inferlets."""

from __future__ import annotations

import sqlite3
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pie_trio.application.host.session import Launch
from pie_trio.application.services import Grants
from pie_trio.config import ControlConfig
from pie_trio.control.export_register import open_export_register
from pie_trio.errors import (
    BadArgumentError,
    ExportLostError,
    ForbiddenError,
    LimitError,
    NotFoundError,
    StoreError,
)
from pie_trio.inference.fake import fake_continuation
from tests.application.host.clients import Client, open_rig

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path

    from trio.testing import MockClock

    from tests.application.host.clients import Rig

PROMPT = [256, *b"Once upon"]
PAGES = [0, 1, 2]


@asynccontextmanager
async def client_of(
    rig: Rig, owner: str, grants: Grants | None = None
) -> AsyncGenerator[Client]:
    """Run an instance of an owner, with queue 0."""
    session = rig.make_session(f"{owner}-1")
    session.launch = Launch(f"{owner}-1", "{}", owner, grants or Grants())
    session.create_queue(0, "")
    try:
        yield Client(session)
    finally:
        await session.close()


def export(
    client: Client,
    name: str = "story",
    *,
    pages: Sequence[int] = PAGES,
    persistent: bool = True,
    permission: tuple[str, Any] = ("owner", None),
    seconds: float | None = None,
    metadata: bytes = b"",
) -> Any:
    data = np.frombuffer(metadata, np.uint8)
    return client.session.export_kvpage(
        0, list(pages), name, persistent, permission, seconds, data
    )


async def write(client: Client) -> None:
    client.session.alloc_kvpage(0, PAGES)
    await client.run(PROMPT, pages=PAGES)


async def go_on(client: Client, name: str = "story") -> list[int]:
    """Import three pages under fresh numbers, and run one token behind them."""
    pages = [50, 51, 52]
    client.session.import_kvpage(0, name, pages)
    token = await client.run([65], pages=pages, start=len(PROMPT))
    client.session.dealloc_kvpage(0, pages)
    return [token]


EXPECTED = fake_continuation([*PROMPT, 65], 1)


async def test_a_persistent_export_outlives_its_exporter() -> None:
    async with open_rig() as rig:
        async with client_of(rig, "ann") as client:
            await write(client)
            export(client, metadata=b"tokens")
        async with client_of(rig, "ann") as client:
            assert await go_on(client) == EXPECTED
            assert await go_on(client) == EXPECTED, "nobody wrote into the export"
            name, owner, model, count, metadata, kept, left, imports = (
                client.session.get_export(0, "story")
            )
            assert (name, owner, model, count) == ("story", "ann", "fake", 3)
            assert bytes(metadata) == b"tokens"
            assert (kept, left, imports) == (True, None, 2)


async def test_any_other_export_ends_with_its_exporter() -> None:
    async with open_rig() as rig, client_of(rig, "ann") as stays:
        async with client_of(rig, "ann") as goes:
            goes.session.launch = Launch("ann-2", "{}", "ann")
            await write(goes)
            export(goes, persistent=False)
            assert await go_on(stays) == EXPECTED
        with pytest.raises(NotFoundError, match="no export 'story'"):
            stays.session.get_export(0, "story")


async def test_an_import_may_come_before_the_exported_forward_has_run() -> None:
    async with open_rig(gated=True) as rig, client_of(rig, "ann") as client:
        client.session.alloc_kvpage(0, PAGES)
        client.forward(PROMPT, pages=PAGES)
        await rig.gate.wait_started(1)
        export(client)
        client.session.import_kvpage(0, "story", [50, 51, 52])
        ticket = client.forward([65], pages=[50, 51, 52], start=len(PROMPT))
        rig.gate.open()
        assert await client.take(ticket) == EXPECTED


async def test_who_may_import() -> None:
    async with (
        open_rig() as rig,
        client_of(rig, "ann", Grants(publish=True)) as ann,
        client_of(rig, "bob") as bob,
        client_of(rig, "cid") as cid,
    ):
        await write(ann)
        export(ann, "own")
        export(ann, "shared", permission=("users", ["bob"]))
        export(ann, "open", permission=("published", None))
        for name, allowed in (("own", []), ("shared", [bob]), ("open", [bob, cid])):
            for client in (bob, cid):
                if client in allowed:
                    assert await go_on(client, f"ann/{name}") == EXPECTED
                else:
                    with pytest.raises(NotFoundError):
                        client.session.import_kvpage(0, f"ann/{name}", [50, 51, 52])
        names = [info[0] for info in bob.session.list_exports(0, "")]
        assert names == ["ann/open", "ann/shared"]
        assert [info[0] for info in ann.session.list_exports(0, "o")] == ["open", "own"]
        write_bob = write(bob)
        await write_bob
        with pytest.raises(ForbiddenError, match="grant `publish`"):
            export(bob, permission=("published", None))


async def test_a_name_is_replaced_and_taken_back() -> None:
    async with open_rig() as rig, client_of(rig, "ann") as client:
        await write(client)
        export(client)
        client.session.import_kvpage(0, "story", [60, 61, 62])
        export(client, pages=[0])
        assert client.session.get_export(0, "story")[3] == 1
        client.session.unexport_kvpage(0, "story")
        with pytest.raises(NotFoundError):
            client.session.unexport_kvpage(0, "story")
        token = await client.run([65], pages=[60, 61, 62], start=len(PROMPT))
        assert [token] == EXPECTED, "imports stay"


async def test_an_export_ends_after_its_time(autojump_clock: MockClock) -> None:
    async with open_rig() as rig, client_of(rig, "ann") as client:
        client.session.alloc_kvpage(0, PAGES)
        export(client, seconds=10.0)
        autojump_clock.jump(4)
        assert client.session.get_export(0, "story")[6] == 6.0
        autojump_clock.jump(6)
        with pytest.raises(NotFoundError):
            client.session.get_export(0, "story")


async def test_masks_go_along() -> None:
    async with open_rig() as rig, client_of(rig, "ann") as client:
        session = client.session
        session.alloc_kvpage(0, [0, 1])
        await client.run([5], pages=[0])
        await client.run([1], pages=[0], start=1, positions=[0], mask=[[1, 1]])
        session.mask_kvpage(0, 0, [True, False, False, False])
        export(client, pages=[0])
        session.import_kvpage(0, "story", [7])
        token = await client.run([9], pages=[7], start=2, positions=[1])
        assert [token] == fake_continuation([1, 9], 1)


async def test_exports_that_nobody_uses_make_room() -> None:
    control = ControlConfig(policy="rendezvous:0.5,0")
    async with open_rig(num_pages=4, control=control) as rig:
        async with client_of(rig, "ann") as client:
            await write(client)
            export(client)
        async with client_of(rig, "ann") as client:
            client.session.alloc_kvpage(0, [0, 1])
            token = await client.run(PROMPT[:8], pages=[0, 1])
            assert [token] == fake_continuation(PROMPT[:8], 1)
            with pytest.raises(NotFoundError):
                client.session.get_export(0, "story")


async def test_bad_exports_are_refused() -> None:
    async with open_rig() as rig, client_of(rig, "ann") as client:
        client.session.alloc_kvpage(0, PAGES)
        refused: tuple[dict[str, Any], ...] = (
            {"name": ""},
            {"name": "x" * 257},
            {"name": "a\nb"},
            {"pages": []},
            {"pages": [0, 0]},
            {"seconds": 0.0},
            {"seconds": float("nan")},
        )
        for details in refused:
            with pytest.raises(BadArgumentError):
                export(client, **details)
        with pytest.raises(LimitError, match="metadata"):
            export(client, metadata=bytes((1 << 20) + 1))
        export(client)
        with pytest.raises(BadArgumentError, match="has 3 pages, but 2"):
            client.session.import_kvpage(0, "story", [50, 51])
        with pytest.raises(BadArgumentError, match="in use"):
            client.session.import_kvpage(0, "story", [50, 51, 0])
        assert rig.pool.num_owners(client.session.pages["fake"].get(0)) == 2


async def test_exports_that_share_their_pages_make_room_together() -> None:
    async with open_rig(num_pages=4) as rig:
        async with client_of(rig, "ann") as client:
            await write(client)
            export(client, "one")
            export(client, "two")
        async with client_of(rig, "bob") as client:
            client.session.alloc_kvpage(0, [0, 1])
            token = await client.run(PROMPT[:8], pages=[0, 1])
            assert [token] == fake_continuation(PROMPT[:8], 1)


async def test_an_export_that_outlives_the_server_is_there_once_it_is_recorded(
    tmp_path: Path,
) -> None:
    path = tmp_path / "exports.db"
    async with open_export_register(path, locked_seconds=0.01) as register:
        async with open_rig(register=register) as rig:
            async with client_of(rig, "ann") as client:
                await write(client)
                unsafe = export(client, seconds=10.0, metadata=b"tokens")
                with pytest.raises(NotFoundError):
                    client.session.get_export(0, "story")
                await client.resolve(unsafe)
                assert await go_on(client) == EXPECTED
                assert export(client, "ends", persistent=False) is None, "at once"
                with closing(sqlite3.connect(path, isolation_level=None)) as other:
                    other.execute("BEGIN IMMEDIATE")
                    with pytest.raises(StoreError, match=r"list of exports.*locked"):
                        await client.resolve(export(client, metadata=b"new"))
                    with pytest.raises(StoreError):
                        await client.resolve(client.session.unexport_kvpage(0, "story"))
                assert await go_on(client) == EXPECTED, "it is as it was"
            (model,) = rig.models.values()
            model.pool.lose_device()
            model.exports.lose("the engine was lost")
            async with client_of(rig, "ann") as client:
                name, owner, _, count, metadata, kept, left, _ = (
                    client.session.get_export(0, "story")
                )
                assert (name, owner, count, kept) == ("story", "ann", 0, True)
                assert bytes(metadata) == b"tokens"
                assert 0 < left <= 10
                with pytest.raises(ExportLostError, match="its 3 pages are gone"):
                    client.session.import_kvpage(0, "story", [])
                await client.resolve(client.session.unexport_kvpage(0, "story"))
                with pytest.raises(NotFoundError):
                    client.session.get_export(0, "story")
