"""Streams: what is there leaves together, and silence is told from absence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from pie_trio.application.web import (
    get_draining,
    make_event_stream,
    one_write,
    until_draining,
)
from tests.application.web.servers import app_with, running

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


async def test_the_head_of_a_stream_does_not_wait_for_its_first_event() -> None:
    go_on = trio.Event()

    async def events() -> AsyncGenerator[bytes]:
        await go_on.wait()
        yield b"data: x\n\n"

    async def stream() -> Any:
        return make_event_stream(events())

    async with running(app_with(stream=stream)) as server:
        async with await server.connect() as client:
            await client.send_get("/stream")
            head = await client.read_until(b"\r\n\r\n")
            assert b"content-type: text/event-stream" in head
            assert b"cache-control: no-cache" in head
            go_on.set()
            assert await client.read_until(b"data: x\n\n")


async def test_a_stream_that_nobody_began_to_read_is_closed() -> None:
    async def events() -> AsyncGenerator[bytes]:
        yield b"data: x\n\n"

    source = events()

    async def stream() -> Any:
        return make_event_stream(source)

    async with running(app_with(stream=stream)) as server:
        async with await server.connect() as client:
            await client.send_get("/stream")
            await client.read_response()
    with pytest.raises(StopAsyncIteration):
        await anext(source)


async def test_what_is_large_leaves_before_the_end_of_one_write() -> None:
    go_on = trio.Event()

    async def stream() -> Any:
        async def events() -> AsyncGenerator[bytes]:
            yield b""
            async with one_write():
                await trio.lowlevel.checkpoint()
            yield b"x" * 100_000
            await go_on.wait()

        return events()

    async with running(app_with(stream=stream)) as server:
        async with await server.connect() as client:
            await client.send_get("/stream")
            await client.read_until(b"x" * 100_000)
            go_on.set()


async def test_only_handlers_can_ask() -> None:
    with pytest.raises(RuntimeError, match="only handlers"):
        get_draining()
    with pytest.raises(RuntimeError, match="only handlers"):
        async with one_write():
            pass
    with pytest.raises(RuntimeError, match="only handlers"):
        async with until_draining():
            pass


async def test_a_block_that_ends_before_the_server_stops_goes_on() -> None:
    async def work() -> dict[str, bool]:
        async with until_draining() as scope:
            await trio.lowlevel.checkpoint()
        return {"was_cancelled": scope.cancelled_caught}

    async with running(app_with(work=work)) as server:
        async with await server.connect() as client:
            assert (await client.get("/work")).json == {"was_cancelled": False}
