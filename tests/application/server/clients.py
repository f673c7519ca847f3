"""A client of the HTTP API: requests, and streams of events as they come."""

from __future__ import annotations

import io
import json
import zipfile
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from tests.application.web.clients import Client, Response, connect

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

HEADER = "from inferlet_py import *\n\n@inferlet\nasync def main({parameters}):\n"

Event = tuple[str, dict[str, Any]]


def text_of(body: str, *, parameters: str = "") -> bytes:
    """Return a program whose main has this body."""
    lines = "".join(f"    {line}\n" for line in body.strip("\n").splitlines())
    return (HEADER.format(parameters=parameters) + lines).encode()


def archive_of(files: Mapping[str, bytes | str]) -> bytes:
    """Return a zip archive with these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


class EventStream:
    """The answer to a request for events, while it comes."""

    def __init__(self, client: Client, head: bytes) -> None:
        self.client, self.head = client, head
        self.ids = list[int]()
        self._rest = b""
        self._is_over = False

    async def next(self) -> Event:
        """Return the next event; comments are passed over."""
        while True:
            while b"\n\n" not in self._rest:
                assert not self._is_over, "the stream has ended"
                size = int((await self.client.read_until(b"\r\n")).split(b";")[0], 16)
                data = await self.client.read_until(b"\r\n") if not size else b""
                while len(data) < size + 2 and size:
                    data += await self._read_some(size + 2 - len(data))
                self._is_over = not size
                self._rest += data[:size]
            block, _, self._rest = self._rest.partition(b"\n\n")
            fields = dict(
                line.split(": ", 1) for line in block.decode().split("\n") if line
            )
            if "event" in fields:
                if "id" in fields:
                    self.ids.append(int(fields["id"]))
                return fields["event"], json.loads(fields["data"])

    async def until(self, kind: str) -> dict[str, Any]:
        """Return the data of the next event of this kind."""
        while True:
            found, data = await self.next()
            if found == kind:
                return data

    async def rest(self) -> list[Event]:
        """Return all events up to the end of the stream."""
        events = [await self.next()]
        while events[-1][0] != "end":
            events.append(await self.next())
        return events

    async def texts(self, count: int) -> list[str]:
        """Return the texts of the next messages."""
        return [(await self.until("message"))["text"] for _ in range(count)]

    async def _read_some(self, count: int) -> bytes:
        if rest := self.client._left_over:
            self.client._left_over = rest[count:]
            return rest[:count]
        return bytes(await self.client.stream.receive_some(count))


class Api:
    """A server on a port of loopback, and headers that go along with every request."""

    def __init__(self, port: int, **headers: str) -> None:
        self.port, self._headers = port, headers

    def with_key(self, key: str) -> Api:
        """Return the same server for whoever has a key."""
        return Api(self.port, authorization=f"Bearer {key}")

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes | object = b"",
        **headers: str,
    ) -> Response:
        """Send a request on a connection of its own, and return the whole answer."""
        async with await connect(self.port) as client:
            await client.send(_encode(method, path, body, self._headers | headers))
            return await client.read_response(method)

    async def get(self, path: str, **headers: str) -> Response:
        return await self.ask("GET", path, **headers)

    async def deploy(self, name: str, body: str, *, parameters: str = "") -> None:
        """Upload a program whose main has this body."""
        program = text_of(body, parameters=parameters)
        answer = await self.ask("PUT", f"/v1/programs/{name}", program)
        assert answer.status in (200, 201), answer.body

    async def run(self, name: str, **arguments: Any) -> Any:
        """Run a program to its end, and return what it told as one document."""
        asked = {"program": name, "arguments": arguments}
        answer = await self.ask(
            "POST", "/v1/instances", asked, accept="application/json"
        )
        assert answer.status == 200, answer.body
        return answer.json

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        body: bytes | object = b"",
        *,
        receive_buffer: int | None = None,
        **headers: str,
    ) -> AsyncGenerator[EventStream]:
        """Send a request and read events; the connection closes at the end of the block."""
        async with await connect(self.port, receive_buffer=receive_buffer) as client:
            await client.send(_encode(method, path, body, self._headers | headers))
            head = await client.read_until(b"\r\n\r\n")
            assert b"text/event-stream" in head, head + client._left_over
            yield EventStream(client, head)

    def launch(self, name: str, *, detach: bool = False, **options: Any) -> Any:
        """Launch a program and read its events."""
        asked = {"program": name, "detach": detach}
        return self.stream("POST", "/v1/instances", asked, **options)

    async def state(self, instance_id: str) -> str:
        answer = await self.get(f"/v1/instances/{instance_id}")
        return str(answer.json["state"])


def _encode(
    method: str, path: str, body: bytes | object, headers: Mapping[str, str]
) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(data)}"]
    lines += [f"{key.replace('_', '-')}: {value}" for key, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + data
