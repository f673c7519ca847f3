"""One WebSocket."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from typing import TYPE_CHECKING, Any, cast

import trio
from hypercorn.protocol.events import Data, Event, Request, StreamClosed
from hypercorn.protocol.ws_stream import ASGIWebsocketState, WSStream
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection, Message, Ping, TextMessage
from wsproto.frame_protocol import CloseReason

from pie_trio.application.web.shell.http_stream import problem_events

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypercorn.typing import ASGISendEvent, WebsocketAcceptEvent

    from pie_trio.application.web.shell.request_task import RequestTask
    from pie_trio.application.web.shell.writer import Writer

__all__ = ["WebSocketStream"]

EVENTS_PER_CHECKPOINT = 32


class WebSocketStream(WSStream):
    """Hypercorn's, without compression, with limits, pings that count, and orderly closes.

    Compression is left out since 200 kB may become 200 MB before their size is known.

    Attributes:
        status: Of the answer to the handshake; None before it.
        sent_bytes: Of frames, or of the body of a rejection.
    """

    def __init__(
        self,
        *args: Any,
        request_task: RequestTask,
        writer: Writer,
        max_message_bytes: int,
        on_accepted: Callable[[], None],
        is_silent_since: Callable[[float], bool],
        on_silent: Callable[[], None],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.request_task = request_task
        self._writer = writer
        self._max_message_bytes = max_message_bytes
        self._on_accepted = on_accepted
        self._is_silent_since, self._on_silent = is_silent_since, on_silent
        self._text, self._data = (
            StringIO(),
            bytearray(),
        )  # of the message that is coming
        self._num_message_bytes = 0
        self._has_failed = False  # to accept
        self.status: int | None = None
        self.sent_bytes = 0

    @property
    def is_complete(self) -> bool:
        """Whether it was closed by this side, or by both."""
        return self.idle

    async def handle(self, event: Event) -> None:
        """Take an event of the client."""
        if isinstance(event, Request):
            headers = [
                (name, value)
                for name, value in event.headers
                if name != b"sec-websocket-extensions"
            ]
            event = replace(event, headers=headers)
        if not isinstance(event, StreamClosed):
            await super().handle(event)
        elif not self.closed:
            self.closed = True
            self.request_task.end_input()
            self.request_task.cancel()

    async def app_send(self, message: ASGISendEvent | None) -> None:
        """Take an event of the application."""
        if self.closed:
            # Hypercorn returns at once: a handler that only sends would never be cancelled.
            await trio.lowlevel.checkpoint()
            return
        if message is not None:
            if message["type"] == "websocket.http.response.start":
                self.status = int(message["status"])
            elif message["type"] == "websocket.http.response.body":
                self.sent_bytes += len(message.get("body", b""))
        await super().app_send(message)
        await self._writer.flush()

    async def close(self, code: int, reason: str) -> None:
        """Say goodbye, if it is open, and cancel the application."""
        if self.state is ASGIWebsocketState.CONNECTED and not self.closed:
            await self._say_goodbye(code, reason)
        await self.handle(StreamClosed(stream_id=self.stream_id))

    async def _say_goodbye(self, code: int, reason: str | None = None) -> None:
        await self._send_wsproto_event(CloseConnection(code=code, reason=reason))
        self.state = ASGIWebsocketState.CLOSED

    async def _handle_events(self) -> None:
        for number, event in enumerate(self.connection.events(), start=1):
            if (
                number % EVENTS_PER_CHECKPOINT == 0
            ):  # tiny frames must not stop the others
                await trio.lowlevel.checkpoint()
            if self.closed:
                return
            if isinstance(event, Message):
                if self.state is ASGIWebsocketState.CONNECTED:
                    await self._take_message_part(cast("Any", event))
            elif isinstance(event, Ping):
                await self._send_wsproto_event(event.response())
            elif isinstance(event, CloseConnection):
                # Either the peer's own, which is answered by the same code, or wsproto's for
                # what is no WebSocket, which has the code to close with.
                await self._say_goodbye(event.code or CloseReason.NORMAL_CLOSURE)
                await self.send(StreamClosed(stream_id=self.stream_id))

    async def _take_message_part(self, event: Any) -> None:
        is_text = isinstance(event, TextMessage)
        self._num_message_bytes += len(event.data.encode() if is_text else event.data)
        if self._num_message_bytes > self._max_message_bytes:
            await self._say_goodbye(
                CloseReason.MESSAGE_TOO_BIG,
                f"a message has at most {self._max_message_bytes} bytes",
            )
            await self.send(StreamClosed(stream_id=self.stream_id))
            return
        if is_text:
            self._text.write(event.data)
        else:
            self._data += event.data
        if not event.message_finished:
            return
        text, data = self._text.getvalue(), bytes(self._data)
        self._text, self._data, self._num_message_bytes = StringIO(), bytearray(), 0
        put: Any = cast("Any", self).app_put
        await put(
            {
                "type": "websocket.receive",
                "bytes": None if is_text else data,
                "text": text if is_text else None,
            }
        )

    async def _accept(self, message: WebsocketAcceptEvent) -> None:
        try:
            await super()._accept(message)
        except Exception:  # the handler chose what was not offered; Hypercorn went on
            self.state = ASGIWebsocketState.HANDSHAKE
            self._has_failed = True
            raise
        self.status = 101
        self._on_accepted()

    async def _send_error_response(self, status_code: int) -> None:
        status_code = 500 if self._has_failed else status_code
        text = (
            "the handler refused this WebSocket"
            if status_code < 500
            else "the server failed at this request; its log says why"
        )
        for event in problem_events(self.stream_id, status_code, text):
            await self.send(event)
        self.status = status_code

    async def _send_wsproto_event(self, event: Any) -> None:
        state = self.connection.state
        is_goodbye = isinstance(event, CloseConnection)
        if state is not ConnectionState.OPEN and not (
            is_goodbye and state is ConnectionState.REMOTE_CLOSING
        ):
            return  # after a goodbye nothing is sent
        data = self.connection.send(event)
        self.sent_bytes += len(data)
        await self.send(Data(stream_id=self.stream_id, data=data))

    async def _send_pings(self) -> None:
        interval = self.config.websocket_ping_interval
        assert interval is not None, "pings are on"
        while True:
            began = trio.current_time()
            await self._send_wsproto_event(Ping())
            self._writer.push()
            await trio.sleep(interval)
            if self.closed:
                return
            if self._is_silent_since(began):
                self._on_silent()
                return
