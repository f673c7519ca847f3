"""Deadlines of connections, in virtual time over streams in memory, and once over sockets."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from quart import websocket
from trio.testing import memory_stream_pair

from pie_trio.application.web.shell import ShellConfig
from pie_trio.application.web.shell.connection import Connection
from pie_trio.application.web.shell.protocol import Peer
from pie_trio.application.web.shell.shared import Shared
from tests.application.web.clients import HANDSHAKE
from tests.application.web.servers import app_with, read_body, running

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from trio.testing import MockClock

    MemoryStream = trio.StapledStream[
        trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream
    ]

    from pie_trio.application.web import WebApp

CONFIG = ShellConfig(
    header_seconds=10,
    keep_alive_seconds=30,
    body_seconds=20,
    stall_seconds=40,
    ping_seconds=15,
)
PEER = Peer(name="test", client=None, server=None, is_secure=False)
REQUEST = b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"


async def hello() -> str:
    return "hello"


async def read() -> bytes:
    return await read_body()


async def work() -> str:
    await trio.sleep(1000)
    return "done"


def make_app() -> WebApp:
    app = app_with(hello=hello, read=read, work=work)

    @app.websocket("/ws")
    async def ws() -> None:
        await websocket.accept()
        await trio.sleep_forever()

    return app


@asynccontextmanager
async def connected() -> AsyncGenerator[MemoryStream]:
    """A connection in memory; its time is the test's."""
    theirs, ours = memory_stream_pair()

    async def run() -> None:
        await Connection(ours, Shared(make_app(), CONFIG), PEER).run()
        await ours.aclose()

    with trio.fail_after(100_000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield theirs
            nursery.cancel_scope.cancel()


async def read_all(stream: MemoryStream) -> bytes:
    data = b""
    while more := await stream.receive_some():
        data += more
    return data


async def read_answer(stream: MemoryStream) -> bytes:
    data = b""
    while not data.endswith(b"hello"):
        data += await stream.receive_some()
    return data


async def test_a_connection_without_a_request_is_closed(
    autojump_clock: MockClock,
) -> None:
    async with connected() as stream:
        assert await read_all(stream) == b""
        assert trio.current_time() == 10


async def test_a_head_that_trickles_is_refused(autojump_clock: MockClock) -> None:
    async with connected() as stream, trio.open_nursery() as nursery:

        async def trickle() -> None:
            for byte in REQUEST:
                await stream.send_all(bytes([byte]))
                await trio.sleep(1)

        nursery.start_soon(trickle)
        answer = await read_all(stream)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code": "timed-out"' in answer
        assert trio.current_time() == 10
        nursery.cancel_scope.cancel()


async def test_an_idle_connection_is_closed_after_each_request(
    autojump_clock: MockClock,
) -> None:
    async with connected() as stream:
        for _ in range(3):
            await stream.send_all(REQUEST)
            assert b" 200 " in await read_answer(stream)
            await trio.sleep(29)
        assert await read_all(stream) == b""
        assert trio.current_time() == pytest.approx(2 * 29 + 30)


async def test_a_later_head_that_trickles_is_refused_too(
    autojump_clock: MockClock,
) -> None:
    async with connected() as stream:
        await stream.send_all(REQUEST)
        await read_answer(stream)
        await trio.sleep(25)
        await stream.send_all(b"GET ")
        await trio.sleep(9)
        await stream.send_all(b"/hello")
        assert (await read_all(stream)).startswith(b"HTTP/1.1 408 ")
        assert trio.current_time() == 25 + 10


async def test_a_handler_may_take_its_time(autojump_clock: MockClock) -> None:
    async with connected() as stream:
        await stream.send_all(b"GET /work HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 " in await stream.receive_some()
        assert trio.current_time() == 1000
        assert await read_all(stream) == b""
        assert trio.current_time() == 1030


async def test_a_body_may_take_its_time_but_not_stand_still(
    autojump_clock: MockClock,
) -> None:
    async with connected() as stream:
        await stream.send_all(
            b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
        )
        for _ in range(8):
            await trio.sleep(19)
            await stream.send_all(b"x")
        answer = await read_all(stream)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert trio.current_time() == 8 * 19 + 20


async def test_a_body_that_comes_at_last_is_answered(
    autojump_clock: MockClock,
) -> None:
    async with connected() as stream:
        await stream.send_all(
            b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"
        )
        for byte in b"hello":
            await trio.sleep(19)
            await stream.send_all(bytes([byte]))
        assert b" 200 " in await read_answer(stream)


async def test_pings_find_a_client_that_is_gone(autojump_clock: MockClock) -> None:
    async with connected() as stream:
        await stream.send_all(HANDSHAKE + b"\r\n")
        answer = await read_all(stream)
        assert b" 101 " in answer
        assert trio.current_time() == 30  # the answer to the first ping was due by 15


async def test_a_websocket_that_answers_lives(autojump_clock: MockClock) -> None:
    async with connected() as stream:
        await stream.send_all(HANDSHAKE + b"\r\n")
        for _ in range(20):
            await stream.receive_some()
            await trio.sleep(10)
            await stream.send_all(b"\x8a\x80\0\0\0\0")
        assert trio.current_time() >= 20 * 10
        await stream.send_all(b"\x88\x80\0\0\0\0")
        assert (await read_all(stream)).endswith(b"\x88\x00")


async def test_deadlines_hold_over_sockets() -> None:
    config = ShellConfig(
        header_seconds=0.05, keep_alive_seconds=0.05, body_seconds=0.05
    )
    async with running(make_app(), config) as server:
        async with await server.connect() as client:
            await client.expect_end()
        async with await server.connect() as client:
            assert (await client.get("/hello")).status == 200
            await client.expect_end()
        async with await server.connect() as client:
            await client.send(b"GET /he")
            assert (await client.read_response()).status == 408
            await client.expect_end()
        async with await server.connect() as client:
            head = b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhell"
            await client.send(head)
            assert (await client.read_response()).status == 408
            await client.expect_end()
