"""Stopping: who is let go, who gets time, and that it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from quart import websocket

from pie_trio.application.web import get_draining, make_event_stream, until_draining
from pie_trio.application.web.shell import ShellConfig
from tests.application.web.clients import HANDSHAKE, open_websocket
from tests.application.web.servers import (
    LONG_SECONDS,
    Probe,
    app_with,
    read_body,
    running,
    settle,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

PATIENT = ShellConfig(drain_seconds=LONG_SECONDS, close_seconds=LONG_SECONDS)
QUICK = ShellConfig(drain_seconds=0.05, close_seconds=0.1)


async def hello() -> str:
    return "hello"


async def wait_for_end(server: Any) -> None:
    with trio.fail_after(30):
        await server.ended.wait()


async def test_a_server_without_connections_stops_at_once() -> None:
    async with running(app_with(), PATIENT) as server:
        server.shutdown.set()
        await wait_for_end(server)


async def test_nobody_can_connect_to_a_server_that_stops() -> None:
    probe = Probe()

    async def wait() -> None:
        with probe.watch():
            await trio.sleep_forever()

    async with running(app_with(wait=wait), PATIENT) as server:
        async with await server.connect() as client:
            await client.send_get("/wait")
            await probe.began.wait()
            server.shutdown.set()
            await settle()
            with pytest.raises(OSError, match=r"(?i)refused"):
                await server.connect()


async def test_idle_connections_are_closed_at_once() -> None:
    async with running(app_with(hello=hello), PATIENT) as server:
        async with (
            await server.connect() as silent,
            await server.connect() as used,
            await server.connect() as begun,
        ):
            assert (await used.get("/hello")).status == 200
            await begun.send(b"GET /hello HTTP")
            await settle()
            server.shutdown.set()
            for client in (silent, used, begun):
                await client.expect_end()
                client.tcp.socket.close()
        await wait_for_end(server)


async def test_a_request_under_way_is_answered_and_then_closed() -> None:
    began, go_on = trio.Event(), trio.Event()

    async def work() -> str:
        began.set()
        await go_on.wait()
        return "done"

    async with running(app_with(work=work), PATIENT) as server:
        async with await server.connect() as client:
            await client.send_get("/work")
            await client.send_get("/work")  # the next one is not begun any more
            await began.wait()
            server.shutdown.set()
            await settle()
            go_on.set()
            response = await client.read_response()
            assert (response.status, response.body) == (200, b"done")
            assert response.headers["connection"] == "close"
            await client.expect_end()
        await wait_for_end(server)


async def test_a_body_may_still_come_while_the_server_drains() -> None:
    began = trio.Event()

    async def read() -> bytes:
        began.set()
        return await read_body()

    async with running(app_with(read=read), PATIENT) as server:
        async with await server.connect() as client:
            head = b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"
            await client.send(head)
            await began.wait()
            server.shutdown.set()
            await settle()
            await client.send(b"hello")
            assert (await client.read_response()).body == b"hello"
        await wait_for_end(server)


async def test_a_stream_sends_its_last_event() -> None:
    began = trio.Event()

    async def events() -> AsyncGenerator[bytes]:
        draining = get_draining()
        yield b"data: first\n\n"
        began.set()
        await draining.wait()
        yield b"data: last\n\n"

    async def stream() -> Any:
        return make_event_stream(events())

    async with running(app_with(stream=stream), PATIENT) as server:
        async with await server.connect() as client:
            await client.send_get("/stream")
            await began.wait()
            server.shutdown.set()
            response = await client.read_response()
            assert response.body == b"data: first\n\ndata: last\n\n"
            await client.expect_end()
        await wait_for_end(server)


async def test_a_stream_that_does_not_listen_is_cut_after_the_deadline() -> None:
    probe = Probe()

    async def events() -> AsyncGenerator[bytes]:
        with probe.watch():
            while True:
                yield b"data: x\n\n"
                await trio.sleep(0.002)

    async def stream() -> Any:
        return make_event_stream(events())

    async with running(app_with(stream=stream), QUICK) as server:
        async with await server.connect() as client:
            await client.send_get("/stream")
            await probe.began.wait()
            began = trio.current_time()
            server.shutdown.set()
            answer = await client.read_all()
            assert trio.current_time() - began >= QUICK.drain_seconds
            assert not answer.endswith(b"0\r\n\r\n")
        await probe.wait_for_end()
        await wait_for_end(server)
    assert (probe.num_cancelled, probe.num_ended) == (1, 1)


async def test_a_websocket_that_listens_says_goodbye_itself() -> None:
    began = trio.Event()
    app = app_with()

    @app.websocket("/ws")
    async def ws() -> None:
        await websocket.accept()
        async with until_draining() as scope:
            began.set()
            await websocket.receive()
        assert scope.cancelled_caught
        await websocket.send("last")
        await websocket.close(1001, "the model goes")

    async with running(app, PATIENT) as server:
        async with await server.connect() as client:
            ws_client = await open_websocket(client)
            await began.wait()
            server.shutdown.set()
            assert await ws_client.read_text() == "last"
            close = await ws_client.read_close()
            assert (close.code, close.reason) == (1001, "the model goes")
        await wait_for_end(server)


async def test_a_websocket_that_does_not_listen_is_closed_with_1001() -> None:
    probe = Probe()
    app = app_with()

    @app.websocket("/ws")
    async def ws() -> None:
        await websocket.accept()
        with probe.watch():
            await websocket.receive()

    async with running(app, QUICK) as server:
        async with await server.connect() as client:
            ws_client = await open_websocket(client)
            await probe.began.wait()
            server.shutdown.set()
            assert (await ws_client.read_close()).code == 1001
            await client.expect_end()
        await probe.wait_for_end()
        await wait_for_end(server)
    assert (probe.num_cancelled, probe.num_ended) == (1, 1)


async def test_a_handshake_under_way_is_refused_at_the_deadline() -> None:
    probe = Probe()
    app = app_with()

    @app.websocket("/ws")
    async def ws() -> None:
        with probe.watch():
            await trio.sleep_forever()

    async with running(app, QUICK) as server:
        async with await server.connect() as client:
            await client.send(HANDSHAKE + b"\r\n")
            await probe.began.wait()
            server.shutdown.set()
            await client.expect_end()
        await wait_for_end(server)
    assert probe.num_cancelled == 1


@pytest.mark.parametrize("kind", ["sse", "ws"])
async def test_a_client_that_does_not_read_cannot_hold_up_the_end(kind: str) -> None:
    probe = Probe()

    async def events() -> AsyncGenerator[bytes]:
        with probe.watch():
            while True:
                yield b"x" * 16384

    async def stream() -> Any:
        return make_event_stream(events())

    app = app_with(stream=stream)

    @app.websocket("/ws")
    async def ws() -> None:
        await websocket.accept()
        with probe.watch():
            while True:
                await websocket.send(b"x" * 16384)

    async with running(app, QUICK) as server:
        async with await server.connect(receive_buffer=4096) as client:
            if kind == "sse":
                await client.send_get("/stream")
            else:
                await open_websocket(client)
            await probe.began.wait()
            await settle()
            server.shutdown.set()
            await wait_for_end(server)
    assert (probe.num_cancelled, probe.num_ended) == (1, 1)


async def test_a_client_that_does_not_close_cannot_hold_up_the_end() -> None:
    async with running(app_with(hello=hello), QUICK) as server:
        async with await server.connect() as client:
            assert (await client.get("/hello")).status == 200
            server.shutdown.set()
            await wait_for_end(server)


async def test_a_cancelled_server_is_gone_at_once() -> None:
    probe = Probe()

    async def wait() -> None:
        with probe.watch():
            await trio.sleep_forever()

    async with running(app_with(wait=wait), PATIENT) as server:
        client = await server.connect()
        await client.send_get("/wait")
        await probe.began.wait()
        server.scope.cancel()
    assert (probe.num_cancelled, probe.num_ended) == (1, 1)
    client.tcp.socket.close()


async def test_many_at_once_are_all_drained() -> None:
    began = list[int]()

    async def stream() -> Any:
        async def events() -> AsyncGenerator[bytes]:
            draining = get_draining()
            began.append(1)
            yield b"data: first\n\n"
            await draining.wait()
            yield b"data: last\n\n"

        return make_event_stream(events())

    bodies = list[bytes]()

    async def listen(server: Any) -> None:
        async with await server.connect() as client:
            await client.send_get("/stream")
            bodies.append((await client.read_response()).body)

    async with running(app_with(stream=stream), PATIENT) as server:
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(listen, server)
            while len(began) < 50:
                await trio.lowlevel.checkpoint()
            server.shutdown.set()
        await wait_for_end(server)
    assert bodies == [b"data: first\n\ndata: last\n\n"] * 50


async def test_only_handlers_can_ask_whether_the_server_drains() -> None:
    with pytest.raises(RuntimeError, match="only handlers"):
        get_draining()
