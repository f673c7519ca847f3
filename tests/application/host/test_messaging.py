"""What clients send to an instance: tickets for messages, and what becomes of cancelled ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from pie_trio.errors import BadArgumentError
from tests.application.host.clients import open_rig

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.testing import MockClock

    from tests.application.host.clients import GuestSession

CLOSES: dict[str, Callable[[GuestSession, int], object]] = {
    "cancel": lambda session, ticket: session.cancel(ticket),
    "release": lambda session, ticket: session.release(ticket),
    "finish": lambda session, ticket: session.finish(ticket),
}


async def test_messages_are_received_in_order_and_then_their_end(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig, rig.open_client() as client:
        session = client.session
        tickets = [session.receive() for _ in range(3)]
        await session.inbox.put("text")
        await session.inbox.put(b"bytes")
        session.inbox.end()
        taken = [await client.resolve(session.take_message(t)) for t in tickets]
        assert taken == [("text", "text"), ("binary", b"bytes"), None]
        assert await client.resolve(session.take_message(session.receive())) is None


async def test_a_receive_waits_for_its_message(autojump_clock: MockClock) -> None:
    async with open_rig() as rig, rig.open_client() as client:
        session = client.session
        ticket = session.receive()
        assert session.wait([ticket], session.now()) == []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.inbox.put, "late")
            answer = await client.resolve(session.take_message(ticket))
        assert answer == ("text", "late")


@pytest.mark.parametrize("close", CLOSES)
async def test_a_message_whose_ticket_is_closed_is_for_the_next(
    autojump_clock: MockClock, close: str
) -> None:
    async with open_rig() as rig, rig.open_client() as client:
        session = client.session
        first, second = session.receive(), session.receive()
        await session.inbox.put("kept")
        assert session.wait([first, second], session.now()) == [first]
        CLOSES[close](session, first)
        assert session.wait([second], session.now()) == [second]
        assert await client.resolve(session.take_message(second)) == ("text", "kept")
        session.cancel(session.receive())
        assert len(session.tickets) == 0


async def test_tickets_of_other_calls_are_refused(autojump_clock: MockClock) -> None:
    async with open_rig() as rig, rig.open_client() as client:
        session = client.session
        session.subscribe(1, "topic", True)
        session.broadcast("topic", ("text", "said"))
        heard, other = session.receive_broadcast(1), session.synchronize(0)
        await wait_all_tasks_blocked()
        for ticket in (heard, other):
            with pytest.raises(BadArgumentError, match="not for take-message"):
                await client.resolve(session.take_message(ticket))
        with pytest.raises(BadArgumentError, match="not a forward's"):
            session.take_forward(heard)
        session.alloc_kvpage(0, [0])
        assert await client.resolve(session.take_broadcast(heard)) is not None


async def test_a_client_is_told_that_a_message_is_wanted(
    autojump_clock: MockClock,
) -> None:
    wanted: list[str] = []
    async with open_rig() as rig, rig.open_client() as client:
        client.session.on_receive = lambda: wanted.append("now")
        client.session.receive()
    assert wanted == ["now"]
    assert not await client.session.inbox.put("too late")
