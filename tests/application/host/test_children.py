"""Children of an instance: messages both ways, ends of every kind, and limits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from pie_trio.application.services import Grants
from pie_trio.config import InstanceLimits
from pie_trio.errors import (
    BadArgumentError,
    ForbiddenError,
    GuestFailedError,
    LimitError,
    NotFoundError,
    UnknownHandleError,
    UnsupportedError,
)
from tests.application.host.clients import GuestSession, assert_is_closed, open_rig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trio.testing import MockClock

    from tests.application.host.clients import Client, Rig

Main = Callable[[GuestSession], Awaitable[str]]


class FakeInstance:
    """Runs a function on a session, as a launcher runs a guest."""

    def __init__(self, session: GuestSession, main: Main) -> None:
        self.session, self._main = session, main

    async def run(self) -> str:
        scope = trio.CancelScope()
        self.session.on_stop = scope.cancel  # no time to clean up
        try:
            with scope:
                return await self._main(self.session)
        finally:
            await self.session.close()
            assert_is_closed(self.session)
        assert self.session.stop_reason is not None, "the scope is cancelled for one"
        raise self.session.stop_reason


class FakeSpawner:
    """Finds what children run by name."""

    def __init__(self, rig: Rig, mains: Mapping[str, Main]) -> None:
        self._rig, self._mains = rig, mains
        self.sessions: list[GuestSession] = []

    async def prepare_child(
        self, parent: Any, program: str, arguments: Mapping[str, Any]
    ) -> FakeInstance:
        await trio.lowlevel.checkpoint()
        if program not in self._mains:
            raise NotFoundError(f"there is no program {program!r}")
        name = f"{parent.launch.instance_id}.{len(self.sessions)}"
        session = self._rig.make_session(name, depth=parent.launch.depth + 1)
        session.spawner = self
        self.sessions.append(session)
        return FakeInstance(session, self._mains[program])


async def echo(session: GuestSession) -> str:
    while True:
        message = await take(session, session.take_message, session.receive())
        if message is None:
            return '"end"'
        await put(session, message[1])


async def put(session: GuestSession, text: str) -> None:
    if (ticket := session.send(text)) is not None:
        await session.tickets.wait_any([ticket], None)
        session.finish(ticket)


async def take(
    session: GuestSession, function: Callable[[int], Any], ticket: int
) -> Any:
    await session.tickets.wait_any([ticket], None)
    return function(ticket)


async def fail(_session: GuestSession) -> str:
    await trio.lowlevel.checkpoint()
    raise GuestFailedError(kind="ValueError", message="bad", traceback="Traceback")


async def hold(session: GuestSession) -> str:
    session.create_queue(0, "")
    session.alloc_kvpage(0, [0, 1])
    await trio.sleep_forever()
    raise AssertionError


async def say(session: GuestSession) -> str:
    for number in range(5):
        await put(session, str(number))
    return "5"


MAINS: dict[str, Main] = {"echo": echo, "fail": fail, "hold": hold, "say": say}


def let_spawn(rig: Rig, client: Client) -> FakeSpawner:
    spawner = FakeSpawner(rig, MAINS)
    client.session.spawner = spawner
    return spawner


async def start(client: Client, number: int, program: str) -> None:
    ticket = client.session.spawn(number, program, "{}")
    await client.resolve(client.session.finish(ticket))


async def receive(client: Client, number: int) -> Any:
    ticket = client.session.receive_child(number)
    return await client.resolve(client.session.take_child_message(ticket))


async def wait(client: Client, number: int) -> Any:
    ticket = client.session.wait_child(number)
    return await client.resolve(client.session.take_outcome(ticket))


async def test_messages_go_both_ways_in_order(autojump_clock: MockClock) -> None:
    async with open_rig() as rig, rig.open_client() as client:
        let_spawn(rig, client)
        await start(client, 1, "echo")
        for text in ("a", "b"):
            assert client.session.send_child(1, ("text", text)) is None
        data = np.frombuffer(b"c", np.uint8)
        client.session.send_child(1, ("binary", data))
        assert [await receive(client, 1) for _ in range(3)] == [
            ("text", "a"),
            ("text", "b"),
            ("binary", b"c"),
        ]
        client.session.release_child(1)


async def test_an_outcome_comes_to_all_who_wait_and_who_ask_later(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig, rig.open_client() as client:
        let_spawn(rig, client)
        await start(client, 1, "say")
        tickets = [client.session.wait_child(1) for _ in range(2)]
        client.session.cancel(client.session.wait_child(1))
        for ticket in tickets:
            outcome = await client.resolve(client.session.take_outcome(ticket))
            assert outcome == ("returned", "5")
        assert await wait(client, 1) == ("returned", "5")
        messages = [await receive(client, 1) for _ in range(6)]
        assert messages == [*(("text", str(n)) for n in range(5)), None]


async def test_a_failure_is_an_outcome(autojump_clock: MockClock) -> None:
    async with open_rig() as rig, rig.open_client() as client:
        let_spawn(rig, client)
        await start(client, 1, "fail")
        assert await wait(client, 1) == ("raised", ("ValueError", "bad", "Traceback"))
        assert await receive(client, 1) is None
        with pytest.raises(NotFoundError, match="receives no more"):
            client.session.send_child(1, ("text", "x"))


async def test_a_child_that_cannot_start_says_why(autojump_clock: MockClock) -> None:
    async with open_rig() as rig, rig.open_client() as client:
        let_spawn(rig, client)
        with pytest.raises(NotFoundError, match="no program 'other'"):
            await start(client, 1, "other")
        assert (await wait(client, 1))[0] == "raised"
        client.session.release_child(1)
        with pytest.raises(UnknownHandleError, match="child 1"):
            client.session.wait_child(1)


async def test_a_child_that_does_not_receive_holds_up_its_parent(
    autojump_clock: MockClock,
) -> None:
    limits = InstanceLimits(max_unread=2)
    async with open_rig(limits=limits) as rig, rig.open_client() as client:
        let_spawn(rig, client)
        await start(client, 1, "hold")
        tickets: list[int] = []
        while len(tickets) < 2:
            await wait_all_tasks_blocked()  # what there is room for is carried on
            ticket = client.session.send_child(1, ("text", "x"))
            tickets += [] if ticket is None else [ticket]
        client.session.cancel(tickets[0])
        client.session.cancel_child(1)
        with pytest.raises(NotFoundError, match="receives no more"):
            await client.resolve(client.session.finish(tickets[1]))
        assert await wait(client, 1) == ("cancelled", None)


async def test_a_parent_that_does_not_receive_holds_up_its_child(
    autojump_clock: MockClock,
) -> None:
    limits = InstanceLimits(max_unread=1)
    async with open_rig(limits=limits) as rig, rig.open_client() as client:
        let_spawn(rig, client)
        await start(client, 1, "say")
        await wait_all_tasks_blocked()
        ticket = client.session.wait_child(1)
        assert client.session.wait([ticket], client.session.now()) == []
        messages = [await receive(client, 1) for _ in range(6)]
        assert messages == [*(("text", str(n)) for n in range(5)), None]
        assert await wait(client, 1) == ("returned", "5")


async def test_a_message_that_is_too_large_fails_the_child_that_sends_it(
    autojump_clock: MockClock,
) -> None:
    async def shout(session: GuestSession) -> str:
        await put(session, "x" * 101)
        return await hold(session)

    limits = InstanceLimits(max_unread_bytes=100)
    async with open_rig(limits=limits) as rig, rig.open_client() as client:
        client.session.spawner = FakeSpawner(rig, {"shout": shout, "hold": hold})
        await start(client, 1, "shout")
        case, (kind, message, _) = await wait(client, 1)
        assert (case, kind) == ("raised", "LimitError")
        assert "101 bytes" in message
        await start(client, 2, "hold")
        with pytest.raises(LimitError, match="101 bytes is too large for a child"):
            client.session.send_child(2, ("text", "x" * 101))


@pytest.mark.parametrize("end", ["close", "release", "cancel", "ticket"])
async def test_a_child_ends_with_its_parent_or_on_its_word(
    autojump_clock: MockClock, end: str
) -> None:
    async with open_rig() as rig:
        async with rig.open_client() as client:
            spawner = let_spawn(rig, client)
            ticket = client.session.spawn(1, "hold", "{}")
            if end != "ticket":
                await client.resolve(client.session.finish(ticket))
            if end == "ticket":
                client.session.cancel(ticket)
            elif end == "release":
                client.session.release_child(1)
            elif end == "cancel":
                client.session.cancel_child(1)
            if end != "close":
                await wait_all_tasks_blocked()
                assert client.session.children.num_alive == 0
        assert all(len(session.tasks) == 0 for session in spawner.sessions)


async def test_grandchildren_end_before_the_parent_has(
    autojump_clock: MockClock,
) -> None:
    async def nest(session: GuestSession) -> str:
        if session.launch.depth < 3:
            session.spawn(1, "nest", "{}")
        return await hold(session)

    async with open_rig() as rig:
        async with rig.open_client() as client:
            spawner = client.session.spawner = FakeSpawner(rig, {"nest": nest})
            await start(client, 1, "nest")
            await wait_all_tasks_blocked()
            assert [s.launch.depth for s in spawner.sessions] == [1, 2, 3]
            assert rig.make_session().launch.depth == 0
        for session in spawner.sessions:
            assert_is_closed(session)


async def test_children_are_limited_in_number_and_depth(
    autojump_clock: MockClock,
) -> None:
    limits = InstanceLimits(max_children=2, max_depth=1)
    async with open_rig(limits=limits) as rig, rig.open_client() as client:
        spawner = let_spawn(rig, client)
        await start(client, 1, "hold")
        await start(client, 2, "hold")
        with pytest.raises(LimitError, match="2 children are there"):
            client.session.spawn(3, "hold", "{}")
        client.session.release_child(1)
        with pytest.raises(LimitError, match="2 children are there"):
            client.session.spawn(3, "hold", "{}")  # the first has not ended yet
        await wait_all_tasks_blocked()
        await start(client, 3, "hold")
        with pytest.raises(LimitError, match="1 launches deep"):
            spawner.sessions[0].spawn(1, "hold", "{}")


async def test_what_cannot_be_launched_is_refused(autojump_clock: MockClock) -> None:
    async with (
        open_rig() as rig,
        rig.open_client(grants=Grants(spawn=False)) as forbidden,
        rig.open_client("test-2") as client,
    ):
        let_spawn(rig, forbidden)
        with pytest.raises(ForbiddenError, match="grant `spawn`"):
            forbidden.session.spawn(1, "hold", "{}")
        with pytest.raises(UnsupportedError, match="launches no children"):
            client.session.spawn(1, "hold", "{}")
        let_spawn(rig, client)
        for arguments in ("[]", "{", "[" * 100_000):
            with pytest.raises(BadArgumentError, match="arguments of a child"):
                client.session.spawn(1, "hold", arguments)
        await start(client, 1, "hold")
        with pytest.raises(BadArgumentError, match="child 1 is in use"):
            client.session.spawn(1, "hold", "{}")
