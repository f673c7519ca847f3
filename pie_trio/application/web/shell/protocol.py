"""HTTP/1.1 of one connection: Hypercorn's protocol, around our requests and WebSockets."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import h11
import trio
from hypercorn.protocol.events import Request, Response
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol, H11WSConnection
from hypercorn.typing import ConnectionState

from pie_trio.application.web.shell.access import Access, log_access
from pie_trio.application.web.shell.handling import Handling
from pie_trio.application.web.shell.http_stream import RequestStream, problem_events
from pie_trio.application.web.shell.request_task import RequestTask
from pie_trio.application.web.shell.websocket_stream import WebSocketStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from hypercorn.events import Event
    from hypercorn.protocol.events import Event as StreamEvent
    from hypercorn.typing import TaskGroup

    from pie_trio.application.web.problems import RefusedError
    from pie_trio.application.web.shell.framing import Framing
    from pie_trio.application.web.shell.shared import Shared
    from pie_trio.application.web.shell.writer import Writer

__all__ = ["Peer", "Protocol"]


class Peer:
    """What the protocol must know of its connection.

    Attributes:
        name: For the access log.
        client: Address and port; None for a unix socket.
        server: The same of this side.
        is_secure: Whether it has TLS.
    """

    def __init__(
        self,
        *,
        name: str,
        client: tuple[str, int] | None,
        server: tuple[str, int] | None,
        is_secure: bool,
    ) -> None:
        self.name, self.client, self.server = name, client, server
        self.is_secure = is_secure


class Protocol(H11Protocol):
    """One connection's requests, one after the other.

    Args:
        shared: What all connections share.
        peer: The other side.
        framing: Passes requests on; it is told when the next may come.
        writer: Sends.
        nursery: Where handlers run.
        send: Takes Hypercorn's events for the connection.
        on_accepted: A WebSocket was accepted.
        is_silent_since: Whether the peer could have sent something since a time, and has not.
        on_silent: The peer of a WebSocket does not answer pings.
    """

    def __init__(
        self,
        shared: Shared,
        peer: Peer,
        *,
        framing: Framing,
        writer: Writer,
        nursery: trio.Nursery,
        send: Callable[[Event], Awaitable[None]],
        on_accepted: Callable[[], None],
        is_silent_since: Callable[[float], bool],
        on_silent: Callable[[], None],
    ) -> None:
        self._shared, self._peer = shared, peer
        self._framing, self._writer, self._nursery = framing, writer, nursery
        self._websocket_options: dict[str, Any] = {
            "max_message_bytes": shared.config.max_message_bytes,
            "on_accepted": on_accepted,
            "is_silent_since": is_silent_since,
            "on_silent": on_silent,
        }
        self._handling = Handling(shared.draining, writer)
        super().__init__(
            shared.app,
            shared.hypercorn,
            shared.context,
            cast("TaskGroup", None),  # each request has its own
            ConnectionState({}),
            peer.is_secure,
            peer.client,
            peer.server,
            send,
        )

    @property
    def current(self) -> RequestStream | WebSocketStream | None:
        """The request under way; None between two."""
        return cast("RequestStream | WebSocketStream | None", self.stream)

    async def refuse(self, error: RefusedError) -> None:
        """Answer what cannot be read, instead of its handler if there is one.

        The connection must be closed after. If an answer has begun, there is none.
        """
        stream, head = self.current, self._framing.head
        is_handled = stream is not None
        if stream is not None:
            stream.closed = True
            stream.request_task.cancel()
            stream.request_task.end_input()
        can_answer = isinstance(
            self.connection, h11.Connection
        ) and self.connection.our_state in (h11.IDLE, h11.SEND_RESPONSE)
        if can_answer:
            has_body = not (is_handled and head is not None and head.method == "HEAD")
            for event in problem_events(
                STREAM_ID,
                error.status,
                error.message,
                has_body=has_body,
                headers=error.headers,
            ):
                await self.stream_send(event)
        if stream is not None:
            stream.status = stream.status or error.status
            stream.request_task.outcome = "refused"
        else:
            log_access(
                Access(self._peer.name, "-", "-", error.status, 0, 0.0, "refused")
            )

    def cancel(self) -> None:
        """Cancel the handler, if there is one."""
        if (stream := self.current) is not None:
            stream.closed = True
            stream.request_task.end_input()
            stream.request_task.cancel()

    async def stream_send(self, event: StreamEvent) -> None:
        """Send what a request answers."""
        is_last = (
            self.connection.their_state is not h11.DONE or self._shared.is_draining
        )
        if isinstance(event, Response) and event.status_code >= 200 and is_last:
            # The rest of the body would be read as the next request, if it ever came.
            headers = [h for h in event.headers if h[0].lower() != b"connection"]
            event = replace(event, headers=[*headers, (b"connection", b"close")])
        await super().stream_send(event)

    async def _send_error_response(self, status_code: int) -> None:
        # Only if h11 refuses what was passed on, which is not known to happen.
        for event in problem_events(STREAM_ID, status_code, "the request is malformed"):
            await self.stream_send(event)

    async def _check_protocol(self, event: h11.Request) -> None:
        """Nothing: other versions are refused before, other upgrades are ignored."""

    async def _create_stream(self, request: h11.Request) -> None:
        head = self._framing.head
        assert head is not None, "h11 sees only what was read before"
        began = trio.current_time()
        task = RequestTask(
            self._nursery,
            self._handling,
            lambda: self._log(stream, head.method, path, began),
        )
        options: dict[str, Any] = {
            "task_group": task,  # as far as Hypercorn is concerned
            "request_task": task,
            "writer": self._writer,
        }
        make: Callable[..., RequestStream | WebSocketStream] = RequestStream
        if head.is_websocket:
            make = WebSocketStream
            options |= self._websocket_options
            self.connection = H11WSConnection(cast("h11.Connection", self.connection))
        stream = self.stream = make(
            self.app,
            self.config,
            self.context,
            ssl=self.ssl,
            client=self.client,
            server=self.server,
            send=self.stream_send,
            stream_id=STREAM_ID,
            **options,
        )
        target = _origin_form(request.target)
        path = target.partition(b"?")[0].decode("ascii")
        await stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method=head.method,
                raw_path=target,
                state=self.connection_state,
            )
        )

    def _log(
        self,
        stream: RequestStream | WebSocketStream,
        method: str,
        path: str,
        began: float,
    ) -> None:
        outcome: str = stream.request_task.outcome
        if outcome == "done" and not stream.is_complete:
            outcome = "cancelled"
        milliseconds = (trio.current_time() - began) * 1000
        log_access(
            Access(
                self._peer.name,
                method,
                path,
                stream.status,
                stream.sent_bytes,
                milliseconds,
                outcome,
            )
        )


def _origin_form(target: bytes) -> bytes:
    """Return the path and query of a target that may be an absolute URL."""
    if target.startswith(b"/") or target == b"*":
        return target
    _, _, rest = target.partition(b"://")
    slash, query = rest.find(b"/"), rest.find(b"?")
    if slash >= 0 and (query < 0 or slash < query):
        return rest[slash:]
    return b"/" + (rest[query:] if query >= 0 else b"")
