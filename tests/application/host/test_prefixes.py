"""Pages that are offered under what they hold, and found again by whoever begins alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio
import trio.testing

from pie_trio.config import InstanceLimits
from pie_trio.control import export_limits
from pie_trio.errors import BadArgumentError, UnknownHandleError
from pie_trio.inference.fake import fake_continuation
from tests.application.host.clients import PAGE_SIZE, Client, open_rig
from tests.application.host.test_decode import alloc, read, read_all, start

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.application.host.clients import Rig

PROMPT = [256, *b"Once upon"]
NAMES = ["prefix/a", "prefix/b", "prefix/c"]
WHOLE = len(PROMPT) // PAGE_SIZE


def offer(
    client: Client, pages: Sequence[int] = (0, 1), names: Sequence[str] = NAMES[:2]
) -> None:
    client.session.offer_prefix(0, list(pages), list(names))


async def find(
    client: Client, names: Sequence[str] = NAMES, first: int = 50
) -> list[int]:
    """Import what there is, and return the numbers that stand for pages now."""
    numbers = list(range(first, first + len(names)))
    count = await client.resolve(client.session.import_prefix(0, list(names), numbers))
    return numbers[:count]


def exported(rig: Rig) -> list[str]:
    (model,) = rig.models.values()
    return [export.name for export in model.exports.list_for("local", "")]


async def test_a_page_is_found_once_it_is_written() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0, 1, 2])
        ticket = client.forward(PROMPT, pages=[0, 1, 2])
        offer(client)
        await rig.gate.wait_started(1)
        assert await find(client) == []
        rig.gate.open()
        expected = await client.take(ticket)
        found = await find(client)
        assert found == [50, 51], "in order, up to the first that is not there"
        client.session.alloc_kvpage(0, [52])  # its number is unused still
        rest = PROMPT[WHOLE * PAGE_SIZE :]
        start_at = WHOLE * PAGE_SIZE
        assert [await client.run(rest, pages=[*found, 52], start=start_at)] == expected


async def test_what_was_written_before_is_found_at_once() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0, 1, 2])
        await client.run(PROMPT, pages=[0, 1, 2])
        offer(client, [0, 1, 2], NAMES)
        assert exported(rig) == NAMES[:2], "the last page is not full"


async def test_what_was_withdrawn_is_never_found() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, range(5))
        running = client.forward([1], pages=[4])
        await rig.gate.wait_started(1)
        ticket = client.forward(PROMPT, pages=[0, 1, 2])
        offer(client)
        client.session.cancel(ticket)
        rig.gate.open()
        await client.take(running)
        # Others may fill the pages with something else.
        await client.run([7] * len(PROMPT), pages=[0, 1, 2])
        assert exported(rig) == []


async def test_what_has_failed_is_never_found() -> None:
    failures = {0: RuntimeError("the device is broken")}
    async with open_rig(failures=failures) as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0, 1, 2])
        ticket = client.forward(PROMPT, pages=[0, 1, 2])
        offer(client)
        with pytest.raises(Exception, match="the device is broken"):
            await client.take(ticket)
        await client.run([7] * len(PROMPT), pages=[0, 1, 2])
        assert exported(rig) == []


async def test_what_is_to_be_written_over_is_never_found() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0, 1, 2])
        ticket = client.forward(PROMPT, pages=[0, 1, 2])
        offer(client)
        await rig.gate.wait_started(1)
        other = client.forward([7] * 6, pages=[0, 1, 2], start=PAGE_SIZE)
        rig.gate.open()
        await client.take(ticket)
        await client.take(other)
        assert exported(rig) == NAMES[:1]


async def test_a_number_that_stands_for_something_else_by_then_is_not_found() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0, 1, 2])
        ticket = client.forward(PROMPT, pages=[0, 1, 2])
        offer(client)
        await rig.gate.wait_started(1)
        client.session.dealloc_kvpage(0, [0])
        client.session.alloc_kvpage(0, [0])
        rig.gate.open()
        await client.take(ticket)
        assert exported(rig) == NAMES[1:2]


async def test_an_instance_that_has_ended_offers_nothing() -> None:
    async with open_rig(gated=True) as rig:
        async with rig.open_client() as client, trio.open_nursery() as nursery:
            client.session.alloc_kvpage(0, [0, 1, 2])
            client.forward(PROMPT, pages=[0, 1, 2])
            offer(client)
            await rig.gate.wait_started(1)
            nursery.start_soon(client.session.close)
            await trio.testing.wait_all_tasks_blocked()
            rig.gate.open()
        assert exported(rig) == []


async def test_the_prompt_of_a_stream_is_found_from_its_first_token_on() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        alloc(client)
        start(client, tokens=PROMPT)
        offer(client)
        await rig.gate.wait_started(1)
        assert exported(rig) == []
        rig.gate.let_go()
        await rig.gate.wait_started(2)
        await read(client)
        assert exported(rig) == NAMES[:2]
        found = await find(client)
        client.session.alloc_kvpage(0, [52])
        begin = WHOLE * PAGE_SIZE
        ticket = client.forward(PROMPT[begin:], pages=[*found, 52], start=begin)
        rig.gate.open()
        assert await client.take(ticket) == fake_continuation(PROMPT, 1)
        await read_all(client)


@pytest.mark.parametrize("limit", [1, 20])
async def test_a_stream_of_one_token_offers_its_prompt_too(limit: int) -> None:
    async with open_rig() as rig, rig.open_client() as client:
        alloc(client)
        start(client, tokens=PROMPT, max_tokens=limit)
        offer(client)
        await read_all(client)
        assert exported(rig) == NAMES[:2]


async def test_the_first_export_of_a_name_stays() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        (model,) = rig.models.values()
        client.session.alloc_kvpage(0, range(6))
        for pages in ([0, 1, 2], [3, 4, 5]):
            await client.run(PROMPT, pages=pages)
            offer(client, pages[:2])
            assert model.exports.find_own("local", NAMES[0]).pages == [
                client.session.pages["fake"].get(0)
            ]
        assert len(model.exports) == 2


async def test_masks_go_along() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0, 1, 2])
        await client.run(PROMPT, pages=[0, 1, 2])
        client.session.mask_kvpage(0, 0, [False, True, True, False])
        offer(client)
        await find(client)
        hidden = client.session.pages["fake"].hidden
        assert hidden[50].tolist() == [False, True, True, False]
        assert 51 not in hidden


async def test_an_owner_with_too_many_exports_offers_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export_limits, "MAX_EXPORTS_OF_OWNER", 1)
    async with open_rig() as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0, 1, 2])
        await client.run(PROMPT, pages=[0, 1, 2])
        offer(client)
        assert exported(rig) == NAMES[:1], "it is in use, so it stays"
        (model,) = rig.models.values()
        assert model.exports.is_crowded("local"), "nobody looks again for a while"


async def test_nobody_finds_what_another_owner_has_named_so() -> None:
    async with open_rig() as rig, rig.open_client(owner="prefix") as other:
        other.session.alloc_kvpage(0, [0, 1, 2])
        await other.run(PROMPT, pages=[0, 1, 2])
        users = ("users", ["local"])
        nothing = np.empty(0, np.uint8)
        other.session.export_kvpage(0, [0], "a", True, users, None, nothing)
        async with rig.open_client("test-2") as client:
            client.session.import_kvpage(0, "prefix/a", [60])  # it may, by that call
            assert await find(client) == []


async def test_what_there_is_no_room_for_is_not_imported() -> None:
    limits = InstanceLimits(max_pages=4)
    async with open_rig(limits=limits) as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0, 1, 2])
        await client.run(PROMPT, pages=[0, 1, 2])
        offer(client)
        assert await find(client) == [50]
        assert len(client.session.pages["fake"]) == 4


async def test_what_cannot_be_offered_is_refused() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0, 1, 2])
        await client.run(PROMPT, pages=[0, 1, 2])
        with pytest.raises(BadArgumentError, match="begin with 'prefix/', got 'story'"):
            offer(client, names=["prefix/a", "story"])
        with pytest.raises(BadArgumentError, match="named twice"):
            offer(client, pages=[0, 0])
        with pytest.raises(BadArgumentError, match="1 names, but 2 numbers"):
            offer(client, names=NAMES[:1])
        with pytest.raises(BadArgumentError, match="1 names, but 2 numbers"):
            client.session.import_prefix(0, NAMES[:1], [50, 51])
        with pytest.raises(UnknownHandleError):
            offer(client, pages=[0, 9])
        assert exported(rig) == [], "all or nothing"
        offer(client)
        with pytest.raises(BadArgumentError):
            client.session.import_prefix(0, NAMES[:2], [50, 1])


async def test_pages_of_another_replica_are_copied() -> None:
    async with open_rig(names=("fake", "fake")) as rig:
        async with rig.open_client("a") as one, rig.open_client("b") as other:
            one.session.alloc_kvpage(0, [0, 1, 2])
            await one.run(PROMPT, pages=[0, 1, 2])
            offer(one)
            call = other.session.import_prefix(0, NAMES, [50, 51, 52])
            assert await other.resolve(call) == 2
            found = [50, 51]
            begin = WHOLE * PAGE_SIZE
            other.session.alloc_kvpage(0, [52])
            token = await other.run(PROMPT[begin:], pages=[*found, 52], start=begin)
            assert [token] == fake_continuation(PROMPT, 1)
            sessions = [one.session, other.session]
            assert len({id(session.models["fake"]) for session in sessions}) == 2
