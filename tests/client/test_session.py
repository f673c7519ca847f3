"""Conversations over a WebSocket, on both event loops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from pie_trio.client import (
    BrokenConnectionError,
    Client,
    End,
    InstanceCancelledError,
    Message,
    MissingError,
    OverloadedError,
    ProgramFailedError,
    Result,
    Session,
    Started,
)
from tests.application.server.clients import text_of
from tests.client.conftest import until

if TYPE_CHECKING:
    from tests.application.server.conftest import OpenServer
    from tests.client.conftest import OnLoop, OpenClient

ECHO = "async for m in messages(): await send(m * 2)\nreturn 'done'"


async def test_messages_go_both_ways(open_server: OpenServer, on_loop: OnLoop) -> None:
    async def use(pie: Client) -> list[Any]:
        await pie.deploy(text_of(ECHO), "echo")
        found = list[Any]()
        async with pie.session("echo") as session:
            for message in ("a", b"\xff", "é"):
                await session.send(message)
                async for event in session:
                    if isinstance(event, Message):
                        found.append(event.content)
                        break
            await session.end_input()
            assert await session.result() == "done"
            assert session.outcome is not None
            found.append(session.outcome.state)
        return found

    async with open_server() as served:
        found = await on_loop(served, use)
    assert found == ["aa", b"\xff\xff", "éé", "succeeded"]


async def test_events_come_up_to_the_end(open_client: OpenClient) -> None:
    async with open_client() as (pie, _):
        await pie.deploy(text_of("await send(x)", parameters="x: str"), "say")
        async with pie.session("say", x="hi") as session:
            events = [event async for event in session]
        assert [type(event) for event in events] == [Started, Message, Result, End]
        assert [event.number for event in events] == [1, 2, 3, 4]


async def test_a_failure_is_raised_after_the_end(open_client: OpenClient) -> None:
    async with open_client() as (pie, _):
        await pie.deploy(text_of("1 / 0"), "bad")
        with pytest.raises(ProgramFailedError, match="division by zero"):
            async with pie.session("bad") as session:
                await session.result()


async def test_what_cannot_be_launched_is_refused_at_the_door(
    open_client: OpenClient,
) -> None:
    async with open_client() as (pie, _):
        with pytest.raises(MissingError, match="there is no program 'x'"):
            async with pie.session("x"):
                pass


async def test_leaving_the_block_cancels_the_instance(
    open_server: OpenServer, on_loop: OnLoop
) -> None:
    async def use(pie: Client) -> str:
        await pie.deploy(text_of("await receive()"), "waits")
        async with pie.session("waits") as session:
            return session.instance_id

    async with open_server() as served:
        name = await on_loop(served, use)
        await until(lambda: served.registry.num_running == 0)
        assert await served.api.state(name) == "cancelled"


async def test_an_error_in_the_block_comes_out_as_it_is(
    open_client: OpenClient,
) -> None:
    async with open_client() as (pie, served):
        await pie.deploy(text_of("await receive()"), "waits")
        with pytest.raises(ZeroDivisionError):
            async with pie.session("waits"):
                _ = 1 / 0
        await until(lambda: served.registry.num_running == 0)


async def test_a_cancelled_scope_cancels_the_instance(open_client: OpenClient) -> None:
    async with open_client() as (pie, served):
        await pie.deploy(text_of("await send('on')\nawait receive()"), "waits")
        with trio.CancelScope() as scope:
            async with pie.session("waits") as session:
                async for event in session:
                    if isinstance(event, Message):
                        scope.cancel()
        assert scope.cancelled_caught
        await until(lambda: served.registry.num_running == 0)


async def test_a_detached_instance_outlives_the_block(open_client: OpenClient) -> None:
    async with open_client() as (pie, _):
        await pie.deploy(text_of(ECHO), "echo")
        async with pie.session("echo") as session:
            await session.detach()
        instance = pie.instance(session.instance_id)
        assert (await instance.status()).state == "running"
        await instance.end_input()
        assert await instance.attach().result() == "done"


async def test_signals_end_it_and_the_last_events_come(open_client: OpenClient) -> None:
    async with open_client() as (pie, _):
        await pie.deploy(text_of("await receive()"), "waits")
        async with pie.session("waits") as session:
            await session.signal("kill")
            with pytest.raises(InstanceCancelledError):
                await session.result()
            with pytest.raises(MissingError, match="is not attached"):
                await session.send("late")


async def test_messages_without_room_are_refused(open_client: OpenClient) -> None:
    async with open_client() as (pie, _):
        await pie.deploy(text_of("await sleep(3600)"), "deaf")
        async with pie.session("deaf") as session:
            with pytest.raises(OverloadedError, match="has no room"):
                await send_for_ever(session)


async def send_for_ever(session: Session) -> None:
    while True:
        await session.send("x" * 100_000)


async def test_a_server_that_stops_is_told(open_client: OpenClient) -> None:
    async with open_client() as (pie, served):
        await pie.deploy(text_of("await receive()"), "waits")
        async with pie.session("waits") as session:
            served.web.scope.cancel()
            with pytest.raises(BrokenConnectionError):
                await session.result()
            with pytest.raises(BrokenConnectionError):
                await session.send("x")


async def test_many_sessions_use_one_client(open_client: OpenClient) -> None:
    async with open_client() as (pie, _):
        await pie.deploy(text_of(ECHO), "echo")
        results = list[Any]()

        async def talk(number: int) -> None:
            async with pie.session("echo") as session:
                for _ in range(20):
                    await session.send(str(number))
                await session.end_input()
                texts = [e.content async for e in session if isinstance(e, Message)]
                assert texts == [str(number) * 2] * 20
                results.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(talk, number)
        assert sorted(results) == [*range(8)]
