"""Servers on loopback: one that speaks HTTP by h11, and whatever a test writes itself."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import h11
import trio

from pie_trio.application.outgoing import (
    HttpClient,
    HttpLimits,
    HttpPolicy,
    parse_grant,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from pie_trio.application.outgoing import Lookup

TIME_LIMIT_SECONDS = 30.0

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For requests that need none; it knows no certificates, and reads no files."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it arrived."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


@dataclass
class Server:
    """What listens, and what it has seen."""

    reply: Callable[[Seen], Reply]
    port: int = 0
    seen: list[Seen] = field(default_factory=list)
    num_connections: int = 0

    async def serve(self, stream: trio.abc.Stream) -> None:
        self.num_connections += 1
        http = h11.Connection(h11.SERVER)
        while (seen := await self._read(http, stream)) is not None:
            self.seen.append(seen)
            reply = self.reply(seen)
            headers = [
                (name.encode(), value.encode("latin-1"))
                for name, value in (
                    ("content-length", str(len(reply.body))),
                    *reply.headers,
                )
            ]
            body = b"" if seen.method == "HEAD" else reply.body
            await stream.send_all(
                (
                    http.send(h11.Response(status_code=reply.status, headers=headers))
                    or b""
                )
                + (http.send(h11.Data(data=body)) or b"")
                + (http.send(h11.EndOfMessage()) or b"")
            )
            if http.our_state is not h11.DONE:
                return
            http.start_next_cycle()

    async def _read(self, http: h11.Connection, stream: trio.abc.Stream) -> Seen | None:
        body = b""
        request: h11.Request | None = None
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(bytes(await stream.receive_some()))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert request is not None
                headers = {k.decode(): v.decode() for k, v in request.headers}
                return Seen(
                    request.method.decode(), request.target.decode(), headers, body
                )
            else:
                return None


@asynccontextmanager
async def listen(
    handler: Callable[[trio.SocketStream], Awaitable[object]],
    *,
    host: str = "127.0.0.1",
) -> AsyncGenerator[int]:
    """Serve connections, one task for each, and give the port."""

    async def handle(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):  # clients leave whenever they like
            await handler(stream)

    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await nursery.start(
            partial(trio.serve_tcp, handle, 0, host=host)
        )
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_server(
    reply: Callable[[Seen], Reply] | None = None, *, host: str = "127.0.0.1"
) -> AsyncGenerator[Server]:
    """A server that answers each request with ``reply``, by default what it got."""
    server = Server(reply or (lambda seen: Reply(body=seen.body)))
    async with listen(server.serve, host=host) as server.port:
        yield server


def answering(data: bytes) -> Callable[[trio.SocketStream], Awaitable[None]]:
    """A handler that waits for a request, sends some bytes, and closes."""

    async def handle(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(data)
        await stream.send_eof()

    return handle


def make_client(
    *grants: str,
    limits: HttpLimits | None = None,
    lookup: Lookup | None = None,
    ssl_context: ssl.SSLContext = NO_TLS,
) -> HttpClient:
    policy = HttpPolicy([parse_grant(text) for text in grants], lookup=lookup)
    return HttpClient(policy, ssl_context=ssl_context, limits=limits)


class Names:
    """A resolver: each lookup of a host gives the next of its answers, then the last again."""

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        self._answers = {name: list(lists) for name, lists in answers.items()}
        self.looked_up = list[str]()

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        self.looked_up.append(host)
        answers = self._answers[host.removesuffix(".test")]
        return answers.pop(0) if len(answers) > 1 else answers[0]
