"""Clients that do what they should not: bytes as they are, over sockets of trio."""

from __future__ import annotations

import json
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import h11
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    Event,
    Request,
    TextMessage,
)

if TYPE_CHECKING:
    import ssl


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/json"
        error = self.json["error"]
        assert error["status"] == self.status
        return dict(error)


class Client:
    """A connection; HTTP is read by h11, and written as a test likes."""

    def __init__(self, stream: trio.abc.Stream, tcp: trio.SocketStream) -> None:
        self.stream, self.tcp = stream, tcp
        self._left_over = b""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.tcp.socket.close()

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def send_for_ever(self, data: bytes) -> None:
        """Send again and again, until the server takes no more."""
        with suppress(trio.BrokenResourceError):
            while True:
                await self.stream.send_all(data)

    async def get(self, path: str = "/", *headers: str) -> Response:
        """Send a request and return its answer; the connection stays open."""
        await self.send_get(path, *headers)
        return await self.read_response()

    async def send_get(self, path: str = "/", *headers: str) -> None:
        lines = [f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]
        await self.send("\r\n".join(lines).encode())

    async def read_response(self, method: str = "GET") -> Response:
        """Return the next answer, whole."""
        http = h11.Connection(h11.CLIENT)
        http.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        http.send(h11.EndOfMessage())
        if self._left_over:
            http.receive_data(self._left_over)
        self._left_over = b""
        head: h11.Response | None = None
        body = b""
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(bytes(await self.stream.receive_some()))
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                self._left_over = http.trailing_data[0]
                assert head is not None
                headers = {k.decode(): v.decode() for k, v in head.headers}
                return Response(head.status_code, headers, body)
            else:
                assert isinstance(event, h11.InformationalResponse), event

    async def read_until(self, mark: bytes) -> bytes:
        """Return what comes, up to and with a mark."""
        data = self._left_over
        while mark not in data:
            more = await self.stream.receive_some()
            assert more, f"the server closed after {data!r}"
            data += more
        head, _, self._left_over = data.partition(mark)
        return head + mark

    async def read_all(self) -> bytes:
        """Return what comes until the server ends its side."""
        data = self._left_over
        while more := await self.stream.receive_some():
            data += more
        return data

    async def expect_end(self) -> None:
        """The server closes, in whichever way, after nothing more."""
        with suppress(trio.BrokenResourceError):
            assert await self.read_all() == b""

    async def leave(self, how: str) -> None:
        """End by ``fin``, ``rst`` or ``half-close``."""
        if how == "half-close":
            await self.tcp.send_eof()
            return
        if how == "rst":
            linger = struct.pack("ii", 1, 0)
            self.tcp.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.tcp.socket.close()


async def connect(
    port: int,
    *,
    receive_buffer: int | None = None,
    ssl_context: ssl.SSLContext | None = None,
    host: str = "127.0.0.1",
) -> Client:
    """Connect by TCP.

    Args:
        port: Of the server on loopback.
        receive_buffer: Bytes that the system takes while the test does not read.
        ssl_context: For TLS with ``x.test``.
        host: Where to.
    """
    sock = trio.socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        await sock.connect((host, port))
    except BaseException:
        sock.close()
        raise
    tcp = trio.SocketStream(sock)
    if ssl_context is None:
        return Client(tcp, tcp)
    tls = trio.SSLStream(
        tcp, ssl_context, server_hostname="x.test", https_compatible=True
    )
    await tls.do_handshake()
    return Client(tls, tcp)


class WebSocketClient:
    """A WebSocket by wsproto. Made by :func:`open_websocket`."""

    def __init__(self, client: Client, ws: WSConnection) -> None:
        self.client, self._ws = client, ws
        self._events = list[Event]()

    async def send(self, event: Event) -> None:
        await self.client.send(self._ws.send(event))

    async def send_text(self, text: str) -> None:
        await self.send(TextMessage(text))

    async def next_event(self) -> Event:
        while not self._events:
            self._events += self._ws.events()
            if not self._events:
                data = await self.client.stream.receive_some()
                self._ws.receive_data(bytes(data) or None)
        return self._events.pop(0)

    async def read_text(self) -> str:
        text = ""
        while True:
            event = await self.next_event()
            if isinstance(event, TextMessage):
                text += event.data
                if event.message_finished:
                    return text

    async def read_close(self) -> CloseConnection:
        """Return the server's close; pings and messages before it are passed over."""
        while True:
            event = await self.next_event()
            if isinstance(event, CloseConnection):
                return event


async def open_websocket(client: Client, path: str = "/ws") -> WebSocketClient:
    """Shake hands; the server's handler must accept."""
    ws = WSConnection(ConnectionType.CLIENT)
    await client.send(ws.send(Request(host="x", target=path)))
    websocket = WebSocketClient(client, ws)
    assert isinstance(await websocket.next_event(), AcceptConnection)
    return websocket


HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
)
"""Without the empty line at its end."""
