"""The store as an instance sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pie_trio.application.services import Services
from pie_trio.config import InstanceLimits
from pie_trio.errors import (
    BadArgumentError,
    LimitError,
    StoreError,
    UnsupportedError,
)
from tests.application.host.clients import open_rig

if TYPE_CHECKING:
    from pathlib import Path

    from tests.application.host.clients import Client


def as_bytes(data: bytes) -> Any:
    return np.frombuffer(data, np.uint8)


async def set_key(client: Client, key: str, value: bytes) -> None:
    ticket = client.session.store_set(key, as_bytes(value))
    await client.resolve(client.session.finish(ticket))


async def get_key(client: Client, key: str) -> bytes | None:
    ticket = client.session.store_get(key)
    value: bytes | None = await client.resolve(client.session.take_value(ticket))
    return value


async def take_flag(client: Client, ticket: int) -> bool:
    flag: bool = await client.resolve(client.session.take_flag(ticket))
    return flag


async def test_what_one_instance_sets_the_next_one_gets() -> None:
    async with open_rig() as rig:
        async with rig.open_client("first") as client:
            await set_key(client, "key", b"\x00value")
            assert await take_flag(client, client.session.store_exists("key"))
        async with rig.open_client("second") as client:
            assert await get_key(client, "key") == b"\x00value"
            assert await take_flag(client, client.session.store_delete("key"))
            assert not await take_flag(client, client.session.store_delete("key"))
            assert await get_key(client, "key") is None


async def test_owners_have_keys_of_their_own() -> None:
    async with (
        open_rig() as rig,
        rig.open_client("a", owner="ann") as ann,
        rig.open_client("b", owner="bob") as bob,
    ):
        await set_key(ann, "key", b"ann's")
        assert await get_key(bob, "key") is None


async def test_keys_come_in_pages() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        for key in ("b/2", "a", "b/1", "b/3"):
            await set_key(client, key, b"")
        session = client.session

        async def take(prefix: str, after: str, limit: int) -> list[str]:
            ticket = session.store_list_keys(prefix, after, limit)
            keys: list[str] = await client.resolve(session.take_keys(ticket))
            return keys

        assert await take("b/", "", 2) == ["b/1", "b/2"]
        assert await take("b/", "b/2", 2) == ["b/3"]
        with pytest.raises(BadArgumentError, match="limit is 0"):
            await take("", "", 0)


async def test_the_file_is_made_at_the_first_use_and_survives(tmp_path: Path) -> None:
    path = tmp_path / "new" / "store.db"
    async with open_rig(store_path=path) as rig, rig.open_client() as client:
        assert not path.parent.exists()
        await set_key(client, "key", b"value")
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
    async with open_rig(store_path=path) as rig, rig.open_client() as client:
        assert await get_key(client, "key") == b"value"


async def test_a_store_that_cannot_be_opened_is_an_error_each_time(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"no database, but long enough to be looked at" * 100)
    async with open_rig(store_path=path) as rig, rig.open_client() as client:
        for _ in range(2):
            with pytest.raises(StoreError, match=r"store\.db"):
                await get_key(client, "key")
        path.unlink()
        assert await get_key(client, "key") is None


async def test_requests_and_answers_have_a_budget() -> None:
    limits = InstanceLimits(max_request_bytes=100)
    async with open_rig(limits=limits) as rig, rig.open_client() as client:
        session = client.session
        await set_key(client, "key", b"x" * 60)
        with pytest.raises(LimitError, match="101 bytes"):
            session.store_set("key", as_bytes(b"x" * 101))
        first, second = session.store_get("key"), session.store_get("key")
        for _ in range(2):
            await client.resolve(session.wait([first], None))
            await client.resolve(session.wait([second], None))
        outcomes = [session.tickets.peek(ticket) for ticket in (first, second)]
        assert sum(isinstance(outcome, LimitError) for outcome in outcomes) == 1
        session.cancel(first)
        session.release(second)
        assert session.requests.num_bytes == 0
        assert await get_key(client, "key") == b"x" * 60


async def test_a_server_without_a_store_says_so() -> None:
    async with open_rig() as rig:
        rig.services = Services(rig.models)
        async with rig.open_client() as client:
            with pytest.raises(UnsupportedError, match="no store"):
                client.session.store_get("key")
