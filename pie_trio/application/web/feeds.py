"""Streams that are asked for what there is: no generator, scope or timer for each event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

import trio
from quart.wrappers.response import ResponseBody

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from hypercorn.typing import ASGISendEvent

__all__ = ["HEARTBEAT", "Feed", "FeedBody", "send_feed"]

HEARTBEAT = b": keep-alive\n\n"


class Feed(Protocol):
    """Where the events of one stream come from; a context that is open while it is sent."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def take(self) -> bytes | None:
        """Return all that is there, as whole events; what was taken before was sent.

        Returns:
            Nothing if none is there now; None after the last.
        """
        ...

    async def wait(self) -> None:
        """Return once there may be something to take; cancelled, nothing is lost."""
        ...


class FeedBody(ResponseBody):
    """The body of an answer that a feed makes.

    Args:
        feed: Used up.
        heartbeat_seconds: After so long without an event a comment is sent, so that proxies keep
            the connection, and the end of the client's is seen.
    """

    def __init__(self, feed: Feed, heartbeat_seconds: float) -> None:
        self.feed, self.heartbeat_seconds = feed, heartbeat_seconds
        self._is_ended: Callable[[], bool] | None = None

    def end_when(self, is_ended: Callable[[], bool]) -> None:
        """End before the first write, be it a heartbeat, for which this is true."""
        self._is_ended = is_ended

    @property
    def may_write(self) -> bool:
        """Whether it goes on."""
        return self._is_ended is None or not self._is_ended()

    async def __aenter__(self) -> Self:
        """Begin: for Quart where it reads a body itself."""
        self.feed.__enter__()
        return self

    async def __aexit__(self, *failure: object) -> None:
        """End."""
        self.feed.__exit__(*failure)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield what is there, without heartbeats."""
        while (data := self.feed.take()) is not None:
            if not data:
                await self.feed.wait()
            elif self.may_write:
                yield data
            else:
                return


async def send_feed(
    body: FeedBody, send: Callable[[ASGISendEvent], Awaitable[None]]
) -> None:
    """Send a body after its head, which leaves at once.

    Args:
        body: What is there at once is one message.
        send: Of ASGI; while it waits, nothing is taken. It has a message before it waits, as the
            shell's does: a cancelled one is not sent again.
    """
    sender = _Sender(body, send)
    with body.feed:
        await sender.write(b"")  # by the rules of ASGI, it lets the head go
        await sender.run()
    await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Sender:
    """Sends the events of a body, and a heartbeat after each silence.

    One deadline is there for the whole stream. When it has passed, the sender looks whether there
    was an event since: that costs an event nothing but a look at the clock.
    """

    def __init__(
        self, body: FeedBody, send: Callable[[ASGISendEvent], Awaitable[None]]
    ) -> None:
        self._body, self._send = body, send
        self._is_writing = False
        self._spoke_at = trio.current_time()

    async def write(self, data: bytes) -> None:
        """Send one part; cancelled, it may still have to leave."""
        self._is_writing = True
        await self._send(
            {"type": "http.response.body", "body": data, "more_body": True}
        )
        self._is_writing = False
        self._spoke_at = trio.current_time()

    async def run(self) -> None:
        """Send everything, with heartbeats."""
        seconds = self._body.heartbeat_seconds
        while True:
            with trio.CancelScope(deadline=self._spoke_at + seconds) as scope:
                await self._send_events()
            if not scope.cancelled_caught:
                return
            if self._is_writing:
                await self.write(b"")  # until the client has taken what was written
            elif trio.current_time() >= self._spoke_at + seconds:
                if not self._body.may_write:
                    return
                await self.write(HEARTBEAT)

    async def _send_events(self) -> None:
        feed = self._body.feed
        while (data := feed.take()) is not None:
            if not data:
                await feed.wait()
            elif self._body.may_write:
                await self.write(data)
            else:
                return
