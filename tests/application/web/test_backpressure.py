"""Slow clients and slow handlers hold up each other, and need no memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from quart import request, websocket

from pie_trio.application.web import make_event_stream
from pie_trio.application.web.shell import ShellConfig
from tests.application.web.clients import open_websocket
from tests.application.web.servers import Probe, app_with, running, settle

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


class Counter:
    """Counts bytes, and lets a test wait until the number stays."""

    def __init__(self) -> None:
        self.num_bytes = 0

    async def wait_until_still(self) -> int:
        """Return the number when nothing moves any more."""
        before = -1
        while self.num_bytes != before:
            before = self.num_bytes
            await trio.testing.wait_all_tasks_blocked(0.02)
        return before


async def read_slowly(client: Any, counter: Counter, num_bytes: int) -> None:
    while counter.num_bytes < num_bytes:
        counter.num_bytes += len(await client.stream.receive_some(4096))


@pytest.mark.parametrize("kind", ["sse", "ws"])
async def test_a_client_that_does_not_read_holds_up_its_handler(kind: str) -> None:
    counter, probe = Counter(), Probe()

    async def events() -> AsyncGenerator[bytes]:
        with probe.watch():
            while True:
                counter.num_bytes += 16384
                yield b"x" * 16384

    async def stream() -> Any:
        return make_event_stream(events())

    app = app_with(stream=stream)

    @app.websocket("/ws")
    async def ws() -> None:
        with probe.watch():
            while True:
                counter.num_bytes += 16384
                await websocket.send(b"x" * 16384)

    async with running(app) as server:
        async with await server.connect(receive_buffer=4096) as client:
            if kind == "sse":
                await client.send_get("/stream")
            else:
                await open_websocket(client)
            await probe.began.wait()
            assert await counter.wait_until_still() < 8_000_000
            await server.check_alive()
            assert probe.num_ended == 0


@pytest.mark.parametrize("kind", ["sse", "ws"])
async def test_a_client_that_takes_nothing_is_cut(kind: str) -> None:
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

    async with running(app, ShellConfig(stall_seconds=0.1)) as server:
        async with await server.connect(receive_buffer=4096) as client:
            if kind == "sse":
                await client.send_get("/stream")
            else:
                await open_websocket(client)
            await probe.wait_for_end()
            assert (probe.num_cancelled, probe.num_ended) == (1, 1)
        await server.check_alive()


async def test_a_client_that_reads_slowly_is_not_cut() -> None:
    counter, probe = Counter(), Probe()

    async def events() -> AsyncGenerator[bytes]:
        with probe.watch():
            for _ in range(100):
                yield b"x" * 16384

    async def stream() -> Any:
        return make_event_stream(events())

    async with running(app_with(stream=stream), ShellConfig(stall_seconds=1)) as server:
        async with await server.connect(receive_buffer=4096) as client:
            await client.send_get("/stream")
            await read_slowly(client, counter, 1_638_400)
    assert probe.num_cancelled == 0


@pytest.mark.parametrize("limit", [100, 1 << 30])
@pytest.mark.parametrize(
    "framing", ["Content-Length: 60000000", "Transfer-Encoding: chunked"]
)
async def test_a_body_that_is_not_read_stays_with_the_client(
    framing: str, limit: int
) -> None:
    counter, probe = Counter(), Probe()

    async def ignore() -> None:
        with probe.watch():
            await trio.sleep_forever()

    async def push() -> None:
        piece = b"x" * 65536
        if "chunked" in framing:
            piece = b"10000\r\n" + piece + b"\r\n"
        while True:
            await client.send(piece)
            counter.num_bytes += len(piece)

    app = app_with(ignore=ignore)
    app.config["MAX_CONTENT_LENGTH"] = limit
    async with running(app) as server:
        async with await server.connect() as client, trio.open_nursery() as nursery:
            await client.send(
                f"POST /ignore HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n".encode()
            )
            await probe.began.wait()
            nursery.start_soon(push)
            assert await counter.wait_until_still() < 12_000_000
            await server.check_alive()
            nursery.cancel_scope.cancel()


async def test_a_body_that_is_read_in_pieces_arrives_whole() -> None:
    async def measure() -> dict[str, int]:
        sizes = list[int]()
        async for piece in request.body:
            sizes.append(len(piece))
            await trio.lowlevel.checkpoint()
        return {"bytes": sum(sizes), "largest": max(sizes)}

    app = app_with(measure=measure)
    app.config["MAX_CONTENT_LENGTH"] = 1 << 26
    async with running(app) as server, await server.connect() as client:
        size = 20_000_000
        await client.send(
            f"POST /measure HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode()
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, b"x" * size)
            response = await client.read_response()
        assert response.json["bytes"] == size
        assert response.json["largest"] <= (256 + 64) << 10


@pytest.mark.parametrize("reads", ["whole", "pieces"])
@pytest.mark.parametrize("limit", ["of the shell", "of the path"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_body_over_a_limit_is_never_taken_for_a_shorter_one(
    framing: str, limit: str, reads: str
) -> None:
    outcomes = list[str]()

    async def read() -> str:
        outcomes.append("began")
        if reads == "whole":
            await request.get_data()
        else:
            async for _ in request.body:
                pass
        outcomes.append("whole")
        return "x"

    app = app_with(read=read)
    is_shell = limit == "of the shell"
    app.body_limits = {"/": 1 << 30 if is_shell else 500_000}
    config = ShellConfig(max_body_bytes=500_000 if is_shell else 1 << 30)
    async with running(app, config) as server, await server.connect() as client:
        lines = "POST /read HTTP/1.1\r\nHost: x\r\n"
        if framing == "length":
            await client.send(f"{lines}Content-Length: 500001\r\n\r\n".encode())
        else:
            chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
            head = f"{lines}Transfer-Encoding: chunked\r\n\r\n".encode()
            await client.send(head + chunk * 8)
        response = await client.read_response()
        assert response.status == 413
        assert "500000" in response.error["message"]
        assert response.headers["connection"] == "close"
        await client.expect_end()
    assert "whole" not in outcomes
    if framing == "length" and is_shell:
        assert outcomes == []  # refused before anybody saw it


async def test_limits_of_paths_are_by_their_longest_prefix() -> None:
    async def size() -> dict[str, int]:
        return {"size": len(await request.get_data())}

    app = app_with(size=size)
    app.add_url_rule("/size/large", "large", size, methods=["POST"])
    app.body_limits = {"/size": 10, "/size/large": 100}
    async with running(app) as server, await server.connect() as client:
        for path, num_bytes, status in [
            ("/size", 10, 200),
            ("/size/large", 100, 200),
            ("/size/large", 101, 413),
        ]:
            await client.send(
                f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {num_bytes}\r\n\r\n".encode()
                + b"x" * num_bytes
            )
            assert (await client.read_response()).status == status


async def test_messages_that_are_not_received_stay_with_the_client() -> None:
    counter, probe = Counter(), Probe()

    async def ignore() -> None:
        await websocket.accept()
        with probe.watch():
            await trio.sleep_forever()

    app = app_with()
    app.add_websocket("/ws", "ws", ignore)

    async def push() -> None:
        while True:
            await ws.send_text("x" * 65536)
            counter.num_bytes += 65536

    async with running(app) as server:
        async with await server.connect() as client, trio.open_nursery() as nursery:
            ws = await open_websocket(client)
            nursery.start_soon(push)
            assert await counter.wait_until_still() < 12_000_000
            await server.check_alive()
            nursery.cancel_scope.cancel()


async def test_pipelined_requests_are_not_read_ahead() -> None:
    counter, probe = Counter(), Probe()

    async def wait() -> None:
        with probe.watch():
            await trio.sleep_forever()

    async def push() -> None:
        requests = b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n" * 1000
        while True:
            await client.send(requests)
            counter.num_bytes += len(requests)

    async with running(app_with(wait=wait)) as server:
        async with await server.connect() as client, trio.open_nursery() as nursery:
            nursery.start_soon(push)
            await probe.began.wait()
            assert await counter.wait_until_still() < 12_000_000
            await settle()
            assert probe.num_ended == 0
            nursery.cancel_scope.cancel()
