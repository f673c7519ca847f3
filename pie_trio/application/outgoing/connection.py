"""One connection to a checked address: HTTP/1.1 by h11 over a stream of trio."""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import TYPE_CHECKING

import h11
import trio

from pie_trio.errors import HttpFailedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pie_trio.application.outgoing.addresses import IPAddress
    from pie_trio.application.outgoing.messages import Header, HttpLimits
    from pie_trio.application.outgoing.urls import Url

__all__ = [
    "Answer",
    "Connection",
    "NoAnswerError",
    "OnHead",
    "Write",
    "connect",
    "make_ssl_context",
]

MAX_ADDRESSES = 4
MAX_INFORMATIONAL = 16
READ_BYTES = 64 << 10


class NoAnswerError(HttpFailedError):
    """A connection ended before the first byte of an answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a server, redirect or not; without its body if that was written elsewhere."""

    status: int
    headers: tuple[Header, ...]
    body: bytes


Write = Callable[[bytes], Awaitable[object]]
OnHead = Callable[["Answer"], Write | None]
"""Gets an answer without its body, and returns what gets that as it comes; None to collect it."""


class Connection:
    """Carries one request at a time. Made by :func:`connect`.

    Closing is synchronous, so it cannot be cancelled; TLS is ended without a goodbye, which
    HTTP does not need.
    """

    def __init__(
        self,
        tcp: trio.SocketStream,
        stream: trio.abc.Stream,
        *,
        origin: tuple[str, str, int],
        limits: HttpLimits,
    ) -> None:
        self.origin = origin
        self.num_exchanges = 0
        self._tcp, self._stream, self._limits = tcp, stream, limits
        self._http = h11.Connection(
            h11.CLIENT, max_incomplete_event_size=limits.max_header_bytes
        )
        self._is_reusable = True

    @property
    def is_reusable(self) -> bool:
        """Whether another request may be sent: none is under way, and nothing is left over."""
        return self._is_reusable

    @property
    def is_quiet(self) -> bool:
        """Whether the server has neither closed an idle connection nor sent anything on it."""
        poll = select.poll()
        poll.register(self._tcp.socket.fileno(), select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Close the socket at once."""
        self._is_reusable = False
        self._tcp.socket.close()

    async def exchange(
        self,
        method: str,
        url: Url,
        headers: Sequence[Header],
        body: bytes,
        *,
        on_head: OnHead | None = None,
    ) -> Answer:
        """Send a request and return the answer; after an error or a cancellation, close.

        Args:
            method: In capitals.
            url: At the origin of the connection.
            headers: Checked; those of the connection itself are added.
            body: Sent with its length.
            on_head: Says what becomes of the body; None to collect it.

        Raises:
            HttpFailedError: The answer is no HTTP, too large, or incomplete.
            NoAnswerError: There was none.
        """
        assert self._is_reusable, "one request at a time, and none after an error"
        self._is_reusable = False
        self.num_exchanges += 1
        try:
            is_sent = await self._send(method, url, headers, body)
            answer = await self._receive(url, on_head)
        except h11.RemoteProtocolError as error:
            raise HttpFailedError(
                f"the answer of {url.authority} is not valid HTTP: {error}"
            ) from error
        except trio.BrokenResourceError as error:
            raise HttpFailedError(
                f"the connection to {url.authority} was lost: {_reason(error)}"
            ) from error
        states = self._http.our_state, self._http.their_state
        if is_sent and states == (h11.DONE, h11.DONE) and not self._left_over():
            self._http.start_next_cycle()
            self._is_reusable = True
        return answer

    async def _send(
        self, method: str, url: Url, headers: Sequence[Header], body: bytes
    ) -> bool:
        """Send a request, and say whether the server took all of it."""
        all_headers = [("host", url.authority), *headers]
        if body or method in ("PATCH", "POST", "PUT"):
            all_headers.append(("content-length", str(len(body))))
        request = h11.Request(method=method, target=url.target, headers=all_headers)
        events = (request, h11.Data(data=body), h11.EndOfMessage())
        data = b"".join(self._http.send(event) or b"" for event in events)
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError:
            # A server may refuse a large body without reading it: the answer says why.
            return False
        return True

    async def _receive(self, url: Url, on_head: OnHead | None) -> Answer:
        response = await self._receive_head(url)
        headers = tuple(
            (name.decode("ascii"), value.decode("latin-1"))
            for name, value in response.headers
        )
        max_bytes = self._limits.max_response_bytes
        body = bytearray()
        head = Answer(response.status_code, headers, b"")
        write = None if on_head is None else on_head(head)
        while not isinstance(event := await self._next_event(url), h11.EndOfMessage):
            assert isinstance(event, h11.Data), "nothing else follows a head"
            if write is not None:
                await write(bytes(event.data))
                continue
            body += event.data
            if len(body) > max_bytes:
                raise HttpFailedError(
                    f"the answer of {url.authority} has more than {max_bytes} bytes, "
                    "which is the limit: ask for less"
                )
        return Answer(response.status_code, headers, bytes(body))

    async def _receive_head(self, url: Url) -> h11.Response:
        for _ in range(MAX_INFORMATIONAL + 1):
            event = await self._next_event(url)
            if isinstance(event, h11.Response):
                self._check_head(event, url)
                return event
            assert isinstance(event, h11.InformationalResponse), "a head comes first"
        raise HttpFailedError(f"{url.authority} announces an answer and sends none")

    def _check_head(self, response: h11.Response, url: Url) -> None:
        """Refuse large headers that came at once; h11 refuses them only if they come slowly."""
        num_bytes = sum(len(name) + len(value) + 4 for name, value in response.headers)
        if num_bytes > self._limits.max_header_bytes:
            raise HttpFailedError(
                f"the answer of {url.authority} has {num_bytes} bytes of headers, at most "
                f"{self._limits.max_header_bytes} are allowed"
            )

    async def _next_event(self, url: Url) -> h11.Event:
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Event):
                return event
            assert event is h11.NEED_DATA, "h11 pauses only after the answer"
            is_first = (
                self._http.their_state is h11.SEND_RESPONSE and not self._left_over()
            )
            try:
                data = await self._stream.receive_some(READ_BYTES)
            except trio.BrokenResourceError as error:
                if is_first:
                    raise _no_answer(url) from error
                raise
            if not data and is_first:
                raise _no_answer(url)
            self._http.receive_data(bytes(data))

    def _left_over(self) -> bool:
        """Say whether bytes were received that are not part of any event yet."""
        return bool(self._http.trailing_data[0])


def make_ssl_context() -> ssl.SSLContext:
    """Return what TLS connections are made with: the system's certificates, checked.

    It reads files: make one for the server.
    """
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


async def connect(
    url: Url,
    addresses: Sequence[IPAddress],
    *,
    limits: HttpLimits,
    ssl_context: ssl.SSLContext,
) -> Connection:
    """Return a connection to the first of the addresses that takes one.

    Args:
        url: Its host is the name in the certificate; it is not looked up.
        addresses: Checked ones of the host.
        limits: What requests may take.
        ssl_context: For ``https``.

    Raises:
        HttpFailedError: None takes one, or its certificate is not the host's.
    """
    reason = "it has no address"
    for address in addresses[:MAX_ADDRESSES]:
        with trio.move_on_after(limits.connect_seconds):
            try:
                tcp = await _open_tcp(address, url.port)
            except OSError as error:
                reason = error.strerror or str(error)
                continue
            return await _secure(tcp, url, limits=limits, ssl_context=ssl_context)
        reason = f"no answer within {limits.connect_seconds:g} seconds"
    raise HttpFailedError(f"cannot connect to {url.authority}: {reason}")


async def _open_tcp(address: IPAddress, port: int) -> trio.SocketStream:
    is_ipv6 = isinstance(address, IPv6Address)
    family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
    tcp = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        await tcp.connect((str(address), port))
    except BaseException:
        tcp.close()
        raise
    return trio.SocketStream(tcp)


async def _secure(
    tcp: trio.SocketStream,
    url: Url,
    *,
    limits: HttpLimits,
    ssl_context: ssl.SSLContext,
) -> Connection:
    stream: trio.abc.Stream = tcp
    try:
        if url.scheme == "https":
            tls = trio.SSLStream(
                tcp, ssl_context, server_hostname=url.host, https_compatible=True
            )
            await tls.do_handshake()
            stream = tls
    except trio.BrokenResourceError as error:
        tcp.socket.close()
        raise HttpFailedError(
            f"no secure connection to {url.authority}: {_reason(error)}"
        ) from error
    except BaseException:
        tcp.socket.close()
        raise
    return Connection(tcp, stream, origin=url.origin, limits=limits)


def _no_answer(url: Url) -> NoAnswerError:
    return NoAnswerError(f"{url.authority} closed the connection without an answer")


def _reason(error: trio.BrokenResourceError) -> str:
    cause = error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return cause.verify_message
    if isinstance(cause, OSError):
        return cause.strerror or str(cause)
    return str(error)
