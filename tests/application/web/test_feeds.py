"""Feeds: what is there leaves together, silence is filled, and whoever does not read is waited for."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Self

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from pie_trio.application.web import FeedBody, make_feed_stream
from pie_trio.application.web.feeds import send_feed
from tests.application.web.servers import LONG_SECONDS, app_with, running, settle

if TYPE_CHECKING:
    from trio.testing import MockClock

BEAT = b": keep-alive\n\n"
BEAT_SECONDS = 15.0


class Events:
    """A feed that a test fills.

    Attributes:
        num_taken: Events that were taken.
        num_entered: How often it was entered.
        failure: Raised by the next look.
        left: Set when it was left.
    """

    def __init__(self, *events: bytes) -> None:
        self._events = deque(events)
        self._is_ended = False
        self._changed = trio.Event()
        self.num_taken = 0
        self.num_entered = 0
        self.failure: Exception | None = None
        self.left = trio.Event()

    def __enter__(self) -> Self:
        self.num_entered += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.left.set()

    def put(self, *events: bytes) -> None:
        self._events += events
        self._changed.set()

    def end(self) -> None:
        self._is_ended = True
        self._changed.set()

    def fail(self, error: Exception) -> None:
        self.failure = error
        self._changed.set()

    def take(self) -> bytes | None:
        if self.failure is not None:
            raise self.failure
        self.num_taken += len(self._events)
        data = b"".join(self._events)
        self._events.clear()
        return data or (None if self._is_ended else b"")

    async def wait(self) -> None:
        self._changed = trio.Event()
        await self._changed.wait()


class Endless(Events):
    """One that always has more."""

    def take(self) -> bytes:
        self.num_taken += 1
        return b"x" * 16384


class Shell:
    """Takes messages as the shell does: at once; then it may let their sender wait.

    Attributes:
        parts: With the time of each; an empty one changes nothing.
        is_over: Whether the last message has come.
    """

    def __init__(self) -> None:
        self.parts = list[tuple[float, bytes]]()
        self.is_over = False
        self._room = trio.Event()
        self._room.set()

    def stop_reading(self) -> None:
        self._room = trio.Event()

    def go_on(self) -> None:
        self._room.set()

    async def send(self, message: Any) -> None:
        assert message["type"] == "http.response.body"
        assert not self.is_over
        self.is_over = not message["more_body"]
        if message["body"]:
            self.parts.append((trio.current_time(), message["body"]))
        assert len(self.parts) < 100, "it does not send for ever"
        await self._room.wait()


async def at(seconds: float) -> None:
    """Wait for a time after the start of the test's clock."""
    await trio.sleep_until(seconds)


async def test_a_heartbeat_comes_after_each_silence_and_only_then(
    autojump_clock: MockClock,
) -> None:
    events, shell = Events(), Shell()
    start = trio.current_time()

    async def speak() -> None:
        for seconds in (10, 20, 30):
            await at(start + seconds)
            events.put(b"data: %d\n\n" % seconds)
        await at(start + 70)
        events.end()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(speak)
        await send_feed(FeedBody(events, BEAT_SECONDS), shell.send)
    assert [(time - start, data) for time, data in shell.parts] == [
        (10, b"data: 10\n\n"),
        (20, b"data: 20\n\n"),
        (30, b"data: 30\n\n"),
        (45, BEAT),
        (60, BEAT),
    ]
    assert shell.is_over
    assert events.left.is_set()


async def test_who_is_slow_gets_no_heartbeat_and_nothing_twice(
    autojump_clock: MockClock,
) -> None:
    events, shell = Events(b"a"), Shell()
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_feed, FeedBody(events, BEAT_SECONDS), shell.send)
        await wait_all_tasks_blocked()
        shell.stop_reading()
        events.put(b"b")
        await at(start + 5 * BEAT_SECONDS)
        events.put(b"c")
        await at(start + 10 * BEAT_SECONDS)
        assert events.num_taken == 2  # c waits here, not with the client
        shell.go_on()
        await wait_all_tasks_blocked()
        events.end()
    assert [data for _, data in shell.parts] == [b"a", b"b", b"c"]


@pytest.mark.parametrize("has_event", [True, False])
async def test_a_stream_ends_before_what_it_may_not_send_any_more(
    autojump_clock: MockClock, has_event: bool
) -> None:
    events, shell = Events(b"a"), Shell()
    body = FeedBody(events, BEAT_SECONDS)
    revoked = trio.Event()
    body.end_when(revoked.is_set)
    with trio.fail_after(10 * BEAT_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_feed, body, shell.send)
            await wait_all_tasks_blocked()
            revoked.set()
            if has_event:
                events.put(b"b")
    assert [data for _, data in shell.parts] == [b"a"]
    assert shell.is_over
    assert events.left.is_set()


async def test_a_cancelled_stream_leaves_its_feed() -> None:
    for is_slow in (True, False):
        events, shell = Events(b"a"), Shell()
        if is_slow:
            shell.stop_reading()
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                body = FeedBody(events, BEAT_SECONDS)
                nursery.start_soon(send_feed, body, shell.send)
                await wait_all_tasks_blocked()
                assert not events.left.is_set()
                nursery.cancel_scope.cancel()
        assert events.left.is_set()
        assert not shell.is_over


async def test_events_that_are_there_are_one_segment_and_the_head_waits_for_none() -> (
    None
):
    events = Events()

    async def stream() -> Any:
        return make_feed_stream(events, LONG_SECONDS)

    async with running(app_with(stream=stream)) as server:
        async with await server.connect() as client:
            await client.send_get("/stream")
            head = await client.read_until(b"\r\n\r\n")
            assert b"content-type: text/event-stream" in head
            assert b"cache-control: no-cache" in head
            for _ in range(10):
                events.put(*(b"data: %d\n\n" % number for number in range(10)))
                segment = bytes(await client.stream.receive_some(65536))
                assert segment.startswith(b"5a\r\ndata: 0\n\n")
                assert segment.endswith(b"data: 9\n\n\r\n")
            events.end()
            assert await client.read_until(b"0\r\n\r\n") == b"0\r\n\r\n"


async def test_a_connection_serves_the_next_request_after_a_stream() -> None:
    async def stream() -> Any:
        events = Events(b"data: a\n\n")
        events.end()
        return make_feed_stream(events, LONG_SECONDS)

    async with running(app_with(stream=stream)) as server:
        async with await server.connect() as client:
            for _ in range(3):
                response = await client.get("/stream")
                assert (response.status, response.body) == (200, b"data: a\n\n")
            await client.send(b"HEAD /stream HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await client.read_response("HEAD")).body == b""
            assert (await client.get("/stream")).body == b"data: a\n\n"


async def test_an_old_client_gets_a_stream_without_chunks() -> None:
    async def stream() -> Any:
        events = Events(b"data: a\n\n")
        events.end()
        return make_feed_stream(events, LONG_SECONDS)

    async with running(app_with(stream=stream)) as server:
        async with await server.connect() as client:
            await client.send(b"GET /stream HTTP/1.0\r\n\r\n")
            _, _, body = (await client.read_all()).partition(b"\r\n\r\n")
            assert body == b"data: a\n\n"


@pytest.mark.parametrize("how", ["fin", "rst", "half-close"])
async def test_a_client_that_leaves_is_noticed_in_silence(how: str) -> None:
    events = Events()

    async def stream() -> Any:
        return make_feed_stream(events, LONG_SECONDS)

    async with running(app_with(stream=stream)) as server:
        async with await server.connect() as client:
            await client.send_get("/stream")
            await client.read_until(b"\r\n\r\n")
            await settle()
            assert not events.left.is_set()
            await client.leave(how)
            with trio.fail_after(30):
                await events.left.wait()
        await server.check_alive()
    assert events.num_entered == 1


async def test_a_client_that_does_not_read_holds_up_the_feed() -> None:
    events = Endless()

    async def stream() -> Any:
        return make_feed_stream(events, LONG_SECONDS)

    async with running(app_with(stream=stream)) as server:
        async with await server.connect(receive_buffer=4096) as client:
            await client.send_get("/stream")
            before = -1
            while events.num_taken != before:
                before = events.num_taken
                await wait_all_tasks_blocked(0.02)
            assert 0 < before < 500
            await server.check_alive()
            assert not events.left.is_set()
        with trio.fail_after(30):
            await events.left.wait()


async def test_a_feed_that_fails_cuts_its_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    events = Events(b"data: a\n\n")

    async def stream() -> Any:
        return make_feed_stream(events, LONG_SECONDS)

    async with running(app_with(stream=stream)) as server:
        async with await server.connect() as client:
            await client.send_get("/stream")
            await client.read_until(b"data: a\n\n\r\n")
            events.fail(ValueError("it went wrong"))
            assert await client.read_all() == b""
        await server.check_alive()
    assert events.left.is_set()
    assert "a handler failed" in caplog.text


@pytest.mark.parametrize("is_revoked", [True, False])
async def test_others_can_read_such_a_body_as_a_whole(is_revoked: bool) -> None:
    events = Events(b"a", b"b")
    body = FeedBody(events, BEAT_SECONDS)
    body.end_when(lambda: is_revoked)
    found = list[bytes]()

    async def read() -> None:
        async with body as chunks:
            found.extend([chunk async for chunk in chunks])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        events.put(b"c")
        events.end()
    assert found == ([] if is_revoked else [b"ab", b"c"])
    assert events.left.is_set()
