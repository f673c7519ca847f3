"""What handlers of streams need: to hear that the server stops, and to send much at once."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
from quart_trio.wrappers import TrioResponse

from pie_trio.application.web.feeds import FeedBody
from pie_trio.application.web.shell.handling import get_handling

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable

    from quart.wrappers import Response
    from quart.wrappers.response import ResponseBody

    from pie_trio.application.web.feeds import Feed

__all__ = [
    "get_draining",
    "make_event_stream",
    "make_feed_stream",
    "one_write",
    "until_draining",
]


def get_draining() -> trio.Event:
    """Return the event that is set when the server begins to stop.

    Handlers that run for long wait for it, send what is left to say, and return: after the
    time to drain they are cancelled.

    Raises:
        RuntimeError: No handler asks, or another server runs it.
    """
    return get_handling().draining


@asynccontextmanager
async def until_draining() -> AsyncGenerator[trio.CancelScope]:
    """Cancel the block when the server begins to stop; ``cancelled_caught`` says so then.

    As around any nursery, an error in the block comes out in a group.

    Raises:
        RuntimeError: No handler asks, or another server runs it.
    """
    draining = get_draining()

    async def watch() -> None:
        await draining.wait()
        scope.cancel()

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            yield scope
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def one_write() -> AsyncGenerator[None]:
    """Let what is sent in the block leave together: one segment instead of many.

    More than 64 KiB leaves before. A WebSocket gets the same messages.

    Raises:
        RuntimeError: No handler asks, or another server runs it.
    """
    writer = get_handling().writer
    with writer.corked():
        yield
    await writer.flush()


def make_event_stream(chunks: AsyncIterable[bytes]) -> Response:
    """Return an answer of server-sent events; its head leaves before the first of them.

    If the client leaves, the generator is closed: it sees ``Cancelled`` where it waits, or
    ``GeneratorExit`` where it yields, so it cleans up in ``finally``, without waiting.

    Args:
        chunks: Whole events, as bytes, any number in each.
    """
    return _make_response(_begin_at_once(chunks))


def make_feed_stream(feed: Feed, heartbeat_seconds: float) -> Response:
    """Return an answer of server-sent events that costs less for each of them.

    Args:
        feed: Opened when its head leaves, and left however the answer ends.
        heartbeat_seconds: After so long without an event a comment is sent.
    """
    return _make_response(FeedBody(feed, heartbeat_seconds))


def _make_response(body: ResponseBody | AsyncIterable[bytes]) -> Response:
    response = TrioResponse(
        body,
        headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        content_type="text/event-stream",
    )
    response.timeout = None
    return response


async def _begin_at_once(chunks: AsyncIterable[bytes]) -> AsyncGenerator[bytes]:
    try:
        yield b""  # by the rules of ASGI, it lets the head go
        async for chunk in chunks:
            yield chunk
    finally:
        if (close := getattr(chunks, "aclose", None)) is not None:
            await close()
