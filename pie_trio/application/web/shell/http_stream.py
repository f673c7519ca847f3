"""One request and its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio
from hypercorn.protocol.events import (
    Body,
    EndBody,
    Event,
    Response,
    StreamClosed,
)
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.utils import suppress_body

from pie_trio.application.web.problems import problem_body

if TYPE_CHECKING:
    from hypercorn.typing import ASGISendEvent

    from pie_trio.application.web.shell.request_task import RequestTask
    from pie_trio.application.web.shell.writer import Writer

__all__ = ["RequestStream", "problem_events"]


def problem_events(
    stream_id: int,
    status: int,
    message: str,
    *,
    has_body: bool = True,
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> list[Event]:
    """Return the events of an answer that the shell gives itself; the connection ends after."""
    body = problem_body(status, message)
    all_headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
        *headers,
    ]
    events: list[Event] = [
        Response(stream_id=stream_id, headers=all_headers, status_code=status)
    ]
    if has_body:
        events.append(Body(stream_id=stream_id, data=body))
    return [*events, EndBody(stream_id=stream_id)]


class RequestStream(HTTPStream):
    """Hypercorn's, with fewer writes and with a task that is cancelled.

    Attributes:
        status: Of the answer; None before it has begun.
        sent_bytes: Of its body.
    """

    def __init__(
        self, *args: Any, request_task: RequestTask, writer: Writer, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.request_task = request_task
        self._writer = writer
        self.status: int | None = None
        self.sent_bytes = 0
        self._has_body = self._is_chunked = self._is_in_chunks = False

    @property
    def is_complete(self) -> bool:
        """Whether the whole answer was given."""
        return self.state is ASGIHTTPState.CLOSED

    async def handle(self, event: Event) -> None:
        """Take an event of the client."""
        if not isinstance(event, StreamClosed):
            await super().handle(event)
        elif not self.closed:
            self.closed = True  # it is answered, or its handler has failed in the midst
            self.request_task.end_input()

    async def app_send(self, message: ASGISendEvent | None) -> None:
        """Take an event of the application.

        Head, body and end are collected and leave in one write. By the rules of ASGI, the head
        leaves with the first part of the body, which may be empty.
        """
        if self.closed:
            await trio.lowlevel.checkpoint()
            return
        if message is not None:
            if message["type"] == "http.response.body" and self._has_body:
                body = message.get("body", b"")
                self.sent_bytes += len(body)
                if self._is_in_chunks and message.get("more_body", False):
                    # One chunk among others changes no state of hypercorn's or h11's.
                    if body:
                        self._writer.write(b"%x\r\n%b\r\n" % (len(body), body))
                    await self._writer.flush()
                    return
            elif message["type"] == "http.response.start":
                self.status = int(message["status"])
                names = {name.lower() for name, _ in message.get("headers", ())}
                # As h11 decides it.
                self._has_body = not suppress_body(self.scope["method"], self.status)
                self._is_chunked = (
                    self.scope["http_version"] == "1.1"
                    and self._has_body
                    and names.isdisjoint((b"content-length", b"transfer-encoding"))
                )
        await super().app_send(message)
        self._is_in_chunks = self._is_chunked and self.state is ASGIHTTPState.RESPONSE
        if message is None or message["type"] != "http.response.start":
            await self._writer.flush()

    async def _send_error_response(self, status_code: int) -> None:
        has_body = not suppress_body(self.scope["method"], status_code)
        text = "the server failed at this request; its log says why"
        for event in problem_events(
            self.stream_id, status_code, text, has_body=has_body
        ):
            await self.send(event)
        self.status = status_code
        self.state = ASGIHTTPState.CLOSED
