"""Streams: what is there leaves together, and silence is told from absence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.application.web import (
    coalesce,
    get_draining,
    make_event_stream,
    one_write,
    until_draining,
)
from tests.application.web.servers import app_with, running

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from trio.testing import MockClock


@given(sizes=st.lists(st.integers(1, 50), max_size=20), max_bytes=st.integers(1, 100))
async def test_chunks_are_joined_in_order_up_to_a_size(
    sizes: list[int], max_bytes: int
) -> None:
    send, receive = trio.open_memory_channel[bytes](20)
    chunks = [bytes([number]) * size for number, size in enumerate(sizes)]
    for chunk in chunks:
        send.send_nowait(chunk)
    send.close()
    joined = [piece async for piece in coalesce(receive, max_bytes=max_bytes)]
    assert b"".join(joined) == b"".join(chunks)
    assert all(len(piece) < max_bytes + 50 for piece in joined)
    if sum(sizes) < max_bytes:
        assert len(joined) == bool(chunks)


async def test_silence_is_filled_with_heartbeats(autojump_clock: MockClock) -> None:
    send, receive = trio.open_memory_channel[bytes](0)

    async def speak() -> None:
        with send:
            await trio.sleep(40)
            await send.send(b"data: x\n\n")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(speak)
        pieces = [piece async for piece in coalesce(receive)]
    beat = b": keep-alive\n\n"
    assert pieces == [beat, beat, b"data: x\n\n"]


async def test_the_sender_hears_that_nobody_listens_any_more() -> None:
    send, receive = trio.open_memory_channel[bytes](1)
    pieces = coalesce(receive)
    send.send_nowait(b"x")
    assert await anext(pieces) == b"x"
    await pieces.aclose()
    with pytest.raises(trio.BrokenResourceError):
        send.send_nowait(b"y")


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


async def test_events_of_one_step_are_one_segment() -> None:
    send, receive = trio.open_memory_channel[bytes](100)

    async def stream() -> Any:
        return make_event_stream(coalesce(receive))

    async with running(app_with(stream=stream)) as server:
        async with await server.connect() as client:
            await client.send_get("/stream")
            await client.read_until(b"\r\n\r\n")
            for _ in range(10):
                for number in range(10):
                    send.send_nowait(b"data: %d\n\n" % number)
                segment = bytes(await client.stream.receive_some(65536))
                assert segment.startswith(b"5a\r\ndata: 0\n\n")
                assert segment.endswith(b"data: 9\n\n\r\n")
            send.close()


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
