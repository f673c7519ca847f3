"""Requests to a server and streams of its events, over httpx2, which runs on trio and asyncio."""

from __future__ import annotations

import json
import ssl
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlsplit

import httpx2
import httpx2.websockets

from pie_trio.client.errors import (
    BrokenConnectionError,
    RefusedError,
    RemoteError,
    UnreachableError,
    refusal_of,
)
from pie_trio.client.events import make_event
from pie_trio.client.trust import explain_tls, trust_usual
from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Mapping

    from pie_trio.client.events import Event

__all__ = ["EventStream", "Transport", "collapsed", "quoted"]

CONNECT_SECONDS = 10.0
SILENT_SECONDS = 60.0
"""A server says something every 15 seconds, even where it has nothing to say."""
MAX_FRAME_BYTES = 16 << 20
DENIED = (401, 403)
UNIX = ("unix:", "http://unix:")


class Transport:
    """The connections to one server. An asynchronous context manager.

    Args:
        url: ``http://HOST:PORT``, ``https://HOST``, or ``unix:PATH``.
        key: Sent with each request, if not None.
        user: For whom the requests are, if not None.
        ssl_context: For https; None for :func:`~pie_trio.client.trust.trust_usual`.

    Raises:
        ConfigError: The URL is none of these, the user no name, or a file of certificates
            cannot be used.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        user: str | None,
        ssl_context: ssl.SSLContext | None,
    ) -> None:
        self.url = url.rstrip("/")
        base, path = _parse(self.url)
        if base.startswith("https:"):
            verify = ssl_context or trust_usual()
        else:  # certificates are not even read
            verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=8)
        self.http = httpx2.AsyncClient(
            base_url=base,
            headers=_headers(key, user),
            timeout=httpx2.Timeout(SILENT_SECONDS, connect=CONNECT_SECONDS, pool=None),
            transport=httpx2.AsyncHTTPTransport(
                verify=verify, limits=limits, uds=path, trust_env=False
            ),
            trust_env=False,
        )

    async def ask(
        self,
        method: str,
        path: str,
        *,
        json_body: object = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Send a request and return its answer, which is JSON.

        Args:
            method: Of HTTP.
            path: From the root, quoted.
            json_body: Sent as JSON, unless None.
            body: Sent as it is.
            headers: More of them.

        Raises:
            UnreachableError: No server answers.
            BrokenConnectionError: The connection has ended before the answer did.
            ProgramFailedError: The program failed; the server sent its traceback.
            RefusedError: The server refuses.
        """
        with self.explained():
            response = await self.http.request(
                method,
                path,
                content=_encode(json_body) if body is None else body,
                headers={"accept": "application/json", **(headers or {})},
            )
        answer = self._decode(response)
        if response.status_code >= 400:
            raise self._refusal(response.status_code, answer)
        return answer

    async def ask_text(self, path: str) -> str:
        """Return the text at a path. Raises what :meth:`ask` does."""
        with self.explained():
            response = await self.http.get(path)
        if response.status_code >= 400:
            raise self._refusal(response.status_code, self._decode(response))
        return response.text

    async def open_events(
        self, method: str, path: str, json_body: object = None
    ) -> EventStream:
        """Send a request and return the stream of its answer, which has to be closed.

        Raises what :meth:`ask` does.
        """
        request = self.http.build_request(
            method,
            path,
            content=_encode(json_body),
            headers={"accept": "text/event-stream"},
        )
        with self.explained():
            response = await self.http.send(request, stream=True)
        stream = EventStream(self, response)
        if response.status_code >= 400:
            async with stream:
                with self.explained():
                    await response.aread()
                raise self._refusal(response.status_code, self._decode(response))
        return stream

    @asynccontextmanager
    async def open_websocket(
        self, path: str
    ) -> AsyncGenerator[httpx2.websockets.AsyncWebSocketSession]:
        """Open a WebSocket for as long as the block is open.

        What is raised inside of the block leaves it in a group. Raises what :meth:`ask` does.
        """
        async with AsyncExitStack() as stack:
            try:
                with self.explained():
                    websocket = await stack.enter_async_context(
                        self.http.websocket(
                            path,
                            max_message_size_bytes=MAX_FRAME_BYTES,
                            # Pongs wait behind what nobody has read yet.
                            keepalive_ping_timeout_seconds=None,
                        )
                    )
            except httpx2.websockets.WebSocketUpgradeError as error:
                status = error.response.status_code
                if status in DENIED:
                    await self.ask("GET", "/v1/instances")  # this answer says why
                raise refusal_of(
                    status, {"message": f"{self.url} has no WebSocket at {path}"}
                ) from error
            yield websocket

    @contextmanager
    def explained(self) -> Generator[None]:
        """Raise errors of the network as ours."""
        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            if told := explain_tls(self.url, error):
                raise UnreachableError(told) from error
            why = str(error) or "it does not answer in time"
            raise UnreachableError(
                f"no server answers at {self.url} ({why}): start one with `pie serve`, "
                "or say where it is with --server or PIE_SERVER"
            ) from error
        except httpx2.HTTPError as error:
            raise BrokenConnectionError(
                f"the connection to {self.url} broke: {str(error) or type(error).__name__}"
            ) from error

    def _decode(self, response: httpx2.Response) -> Any:
        try:
            return response.json()
        except ValueError as error:
            raise RefusedError(
                f"{self.url} does not answer as Pie does: is it another server?",
                status=response.status_code,
            ) from error

    def _refusal(self, status: int, answer: Any) -> RemoteError:
        match answer:
            case {"error": {"message": _} as fields}:
                return refusal_of(status, fields)
            case _:
                return refusal_of(status, {"message": f"{self.url} answers {status}"})


class EventStream:
    """Server-sent events as they come. An asynchronous context manager, which closes it.

    Attributes:
        instance_id: Of the instance that they are about; empty if the server does not say.
    """

    def __init__(self, transport: Transport, response: httpx2.Response) -> None:
        self.instance_id = str(response.headers.get("x-instance-id", ""))
        self._transport, self._response = transport, response
        self._chunks: AsyncGenerator[bytes] = response.aiter_raw()
        self._rest = b""
        self._is_over = False

    async def __aenter__(self) -> EventStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._response.aclose()
        # httpx2 reads through nested generators; what has read the last of a closed connection
        # has ended, and is not left to the garbage collector.
        with suppress(httpx2.HTTPError, httpx2.StreamError):
            async for _chunk in self._chunks:
                pass

    async def next_batch(self) -> list[Event] | None:
        """Return the next events, at least one; None at the end.

        Raises:
            BrokenConnectionError: The connection has ended in the middle.
        """
        while not self._is_over:
            with self._transport.explained():
                chunk = await anext(self._chunks, None)
            if chunk is None:
                self._is_over = True
                return None
            *blocks, self._rest = (self._rest + chunk).split(b"\n\n")
            if events := [e for block in blocks if (e := _read_block(block))]:
                return events
        return None


def _headers(key: str | None, user: str | None) -> dict[str, str]:
    found = {"authorization": f"Bearer {key}"} if key else {}
    if user is not None:
        if not (user.isascii() and user.isprintable() and user.strip()):
            raise ConfigError(f"{user!r} is no name for a user: letters, digits, . _ -")
        found["pie-user"] = user
    return found


def quoted(name: str) -> str:
    """Return a name as a part of a path."""
    return quote(name, safe="")


def _encode(value: object) -> bytes | None:
    return None if value is None else json.dumps(value).encode()


def _parse(url: str) -> tuple[str, str | None]:
    """Return the beginning of all URLs, and the path of a unix socket if it is one."""
    for prefix in UNIX:
        if url.startswith(prefix) and len(url) > len(prefix):
            return "http://localhost", url.removeprefix(prefix)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host or parts.path:
        raise ConfigError(
            f"{url!r} is no server: expected http://HOST:PORT, https://HOST or unix:PATH"
        )
    return url, None


def _read_block(block: bytes) -> Event | None:
    """Return an event as the server writes it, its data on one line; None for a comment."""
    fields = dict[str, str]()
    for line in block.decode().split("\n"):
        name, _, value = line.partition(":")
        fields[name] = value.removeprefix(" ")
    if "data" not in fields:
        return None
    number = fields.get("id", "")
    return make_event(
        fields.get("event", "message"),
        int(number) if number.isdigit() else 0,
        json.loads(fields["data"]),
    )


@asynccontextmanager
async def collapsed() -> AsyncGenerator[None]:
    """Raise what is alone in a group as it is."""
    try:
        yield
    except BaseExceptionGroup as error:
        if (alone := _alone(error)) is None:
            raise
        raise alone from alone.__cause__


def _alone(error: BaseException) -> BaseException | None:
    """Return what is alone in a group, however deep."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    group = cast("BaseExceptionGroup[BaseException]", error)
    return _alone(group.exceptions[0]) if len(group.exceptions) == 1 else None
