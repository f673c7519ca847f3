"""HTTP to a server, on the standard library: one request a connection, no threads, no trio."""

from __future__ import annotations

import http.client
import json
import os
import socket
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from pie_trio.errors import ConfigError, GuestFailedError, PieError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

__all__ = ["RemoteError", "RemoteEvent", "Server", "default_server", "quoted"]

DEFAULT_URL = "http://127.0.0.1:8000"
CONNECT_SECONDS = 10.0
SILENT_SECONDS = 60.0
"""A server says something every 15 seconds, even where it has nothing to say."""
MAX_ANSWER_BYTES = 64 << 20


class RemoteError(PieError):
    """A server has refused a request.

    Attributes:
        status: Of its answer.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class RemoteEvent:
    """One event of a stream.

    Attributes:
        kind: Its name.
        data: What it says.
        number: 0 if it has none.
    """

    kind: str
    data: Mapping[str, Any]
    number: int = 0


def default_server() -> str:
    """Return ``$PIE_SERVER``, else the URL of a server with the usual options."""
    return os.environ.get("PIE_SERVER") or DEFAULT_URL


class Server:
    """A server.

    Args:
        url: ``http://HOST:PORT``, ``https://HOST``, or ``unix:PATH``.

    Raises:
        ConfigError: The URL is none of these.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._connection = _parse(self.url)

    def ask(
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
            ConfigError: No server answers.
            GuestFailedError: A program failed; the server sent its traceback.
            RemoteError: The server refuses.
        """
        if json_body is not None:
            body = json.dumps(json_body).encode()
        sent = {"accept": "application/json", **(headers or {})}
        with self._request(method, path, body, sent) as response:
            return _read_json(response, self.url)

    @contextmanager
    def stream(
        self, method: str, path: str, *, json_body: object = None
    ) -> Generator[Iterator[RemoteEvent]]:
        """Send a request and read the events of its answer for as long as the block is open.

        Raises what :meth:`ask` does.
        """
        body = None if json_body is None else json.dumps(json_body).encode()
        headers = {"accept": "text/event-stream"}
        with self._request(method, path, body, headers) as response:
            yield _read_events(response, self.url)

    @contextmanager
    def _request(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Generator[http.client.HTTPResponse]:
        connection = self._connection()
        try:
            try:
                connection.connect()
            except (OSError, http.client.HTTPException) as error:
                raise ConfigError(
                    f"no server answers at {self.url} ({error}): start one with `pie serve`, "
                    "or say where it is with --server or PIE_SERVER"
                ) from error
            if connection.sock is not None:
                connection.sock.settimeout(SILENT_SECONDS)
            with _reading(self.url):
                # It may refuse before all was sent: its answer says why.
                with suppress(BrokenPipeError, ConnectionResetError):
                    connection.request(method, path, body, dict(headers))
                response = connection.getresponse()
            if response.status >= 400:
                raise _refusal(response, self.url)
            yield response
        finally:
            connection.close()


def quoted(name: str) -> str:
    """Return a name as a part of a path."""
    return quote(name, safe="")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=CONNECT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(CONNECT_SECONDS)
        self.sock.connect(self._path)


def _parse(url: str) -> Any:
    """Return what makes a connection to a server."""
    for prefix in ("unix:", "http://unix:"):
        if url.startswith(prefix) and len(url) > len(prefix):
            return lambda: _UnixConnection(url.removeprefix(prefix))
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.scheme not in ("http", "https") or not host or parts.path:
        raise ConfigError(
            f"{url!r} is no server: expected http://HOST:PORT, https://HOST or unix:PATH"
        )
    make = (
        http.client.HTTPSConnection
        if parts.scheme == "https"
        else http.client.HTTPConnection
    )
    return lambda: make(host, port, timeout=CONNECT_SECONDS)


@contextmanager
def _reading(url: str) -> Generator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise RemoteError(
            0, f"the connection to {url} broke: {str(error) or type(error).__name__}"
        ) from error


def _read_json(response: http.client.HTTPResponse, url: str) -> Any:
    with _reading(url):
        data = response.read(MAX_ANSWER_BYTES)
    try:
        return json.loads(data)
    except ValueError as error:
        raise RemoteError(
            response.status, f"{url} does not answer as Pie does: is it another server?"
        ) from error


def _refusal(response: http.client.HTTPResponse, url: str) -> PieError:
    answer = _read_json(response, url)
    match answer:
        case {"error": {"traceback": str(text), "kind": str(kind), "message": message}}:
            return GuestFailedError(kind=kind, message=message, traceback=text)
        case {"error": {"message": str(message)}}:
            return RemoteError(response.status, message or f"HTTP {response.status}")
        case _:
            return RemoteError(response.status, f"{url} answers {response.status}")


def _read_events(response: http.client.HTTPResponse, url: str) -> Iterator[RemoteEvent]:
    """Yield server-sent events; comments are passed over."""
    fields = dict[str, str]()
    while line := _read_line(response, url):
        text = line.decode().rstrip("\r\n")
        if text:
            name, _, value = text.partition(":")
            fields[name] = value.removeprefix(" ")
        elif "data" in fields:
            number = fields.get("id", "")
            yield RemoteEvent(
                fields.get("event", "message"),
                json.loads(fields["data"]),
                int(number) if number.isdigit() else 0,
            )
            fields.clear()
        else:
            fields.clear()


def _read_line(response: http.client.HTTPResponse, url: str) -> bytes:
    with _reading(url):
        return response.readline()
