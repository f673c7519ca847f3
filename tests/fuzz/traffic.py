"""Random traffic: what a client sends, in which pieces, and how it leaves.

Requests begin as good ones for the routes that there are; then somebody tampers with them.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wsproto.frame_protocol import FrameProtocol, Opcode

from tests.application.server.clients import archive_of, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Step = tuple[str, bytes]
"""``send`` these bytes, ``read`` what comes, ``pause``, or ``half-close``."""

LEAVES = ("fin", "rst", "half-close", "read")
PIECES = (
    *(b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b"\r\n\r\n", b"\xff\xfe", b"%00", b"../"),
    *(b"Content-Length: 5\r\n", b"Content-Length: 99999999999999999999\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n"),
    *(b"Range: bytes=0-\r\n", b"Cookie: pie_key=x; =\r\n", b"Authorization: Bearer pie_x_y\r\n"),
    *(b"X: " + b"y" * 20_000 + b"\r\n", b"Last-Event-ID: -1\r\n", b"Upgrade: websocket\r\n"),
    *(b'{"', b"[" * 500, b"1e999", b'"\\ud800"', b"null", b"}", b"HTTP/1.0", b"HTTP/2.0"),
)  # fmt: skip
PROGRAM = text_of("async for message in messages(): await send(message)")
JSON_BODIES: tuple[Any, ...] = (
    {"program": "echo"},
    {"program": "echo", "arguments": {}, "detach": True},
    {"program": "missing", "arguments": [], "detach": 1},
    {"program": {"source": "x ="}},
    {"program": {"source": PROGRAM.decode()}},
    {"program": {"files": {"../x": "", "app.py": "import os"}}},
    {"messages": [{"text": "a"}, {"base64": "!"}], "end": True},
    {"text": "hello"},
    {"model": "fake", "prompt": "a", "max_tokens": 2, "stream": True},
    {"model": "fake", "messages": [{"role": "user", "content": "a"}]},
    {"jsonrpc": "2.0", "id": 1, "method": "tools/list"},
    {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}},
    [{"jsonrpc": "2.0"}] * 3,
    {"type": "launch", "program": "echo", "request": 1},
    {"type": "attach", "instance": "x", "after": -1},
    {"type": "signal", "instance": "x", "signal": "cancel"},
    None,
    {"program": None, "arguments": {"a": 1e308}},
)


@dataclass(frozen=True)
class Connection:
    """What one client does."""

    steps: tuple[Step, ...]
    leave: str

    def __str__(self) -> str:
        lines = [f"    {what} {data[:600]!r}" for what, data in self.steps]
        return "\n".join([f"  connection, which ends with {self.leave}:", *lines])


def make_case(seed: int, routes: Sequence[tuple[str, str]]) -> list[Connection]:
    """Return what a seed stands for: connections that are open at the same time.

    Args:
        seed: Any number.
        routes: Methods, and paths with ``<parameters>``.
    """
    source = random.Random(seed)
    return [_make_connection(source, routes) for _ in range(source.randint(1, 4))]


def _make_connection(
    source: random.Random, routes: Sequence[tuple[str, str]]
) -> Connection:
    if source.random() < 0.3:
        data = _handshake(source) + b"".join(
            _frame(source) for _ in range(source.randint(0, 6))
        )
    else:
        data = b"".join(
            _request(source, *source.choice(routes))
            for _ in range(source.randint(1, 4))
        )
    for _ in range(source.choice((0, 0, 0, 1, 2, 5))):
        data = source.choice(TAMPERINGS)(source, data)
    return Connection(tuple(_steps(source, data)), source.choice(LEAVES))


def _steps(source: random.Random, data: bytes) -> list[Step]:
    """Cut what is sent into pieces, with pauses between them."""
    count = source.choice((0, 0, 1, 2, 6))
    cuts = sorted(source.randrange(len(data) + 1) for _ in range(count))
    steps: list[Step] = []
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        steps.append(("send", data[start:end]))
        if source.random() < 0.5:
            steps.append((source.choice(("pause", "read")), b""))
    return steps


def _fill(source: random.Random, path: str) -> str:
    names = ("echo", "x", "..", "%2e%2e", "echo-1", "a" * 300, "\u00e9", "%00")
    path = re.sub(r"<[^>]*>", lambda _: source.choice(names), path)
    if source.random() < 0.2:
        path += source.choice(
            ("?after=-1", "?follow=1", "?a=%ff&a", "/", "//", "?" + "x" * 500)
        )
    return path


def _body(source: random.Random) -> bytes:
    kind = source.random()
    if kind < 0.7:
        return json.dumps(source.choice(JSON_BODIES)).encode()
    if kind < 0.8:
        return PROGRAM
    if kind < 0.9:
        return archive_of({"app.py": PROGRAM, "lib/x.py": ""})
    return source.randbytes(source.randrange(2000))


def _request(source: random.Random, method: str, path: str) -> bytes:
    lines = [f"{method} {_fill(source, path)} HTTP/1.1", "Host: localhost"]
    body = _body(source) if method in ("POST", "PUT") else b""
    if source.random() < 0.7:
        lines.append("Content-Type: application/json")
    if source.random() < 0.2:
        lines.append(source.choice(("Accept: text/event-stream", "Accept: */*;q=x")))
    if body and source.random() < 0.2:
        lines.append("Transfer-Encoding: chunked")
        body = _chunked(source, body)
    elif body:
        lines.append(f"Content-Length: {len(body)}")
    head = "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")
    return head + body


def _chunked(source: random.Random, body: bytes) -> bytes:
    chunks = b""
    while body:
        size = source.randint(1, len(body))
        chunks += b"%x\r\n%s\r\n" % (size, body[:size])
        body = body[size:]
    return chunks + b"0\r\n\r\n"


def _handshake(source: random.Random) -> bytes:
    path = source.choice(("/v1/ws", "/v1/ws", "/v1/ws", "/v1/programs", "/ws"))
    return (
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
        "Upgrade: websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def _frame(source: random.Random) -> bytes:
    """Return a frame of a WebSocket, most of them good."""
    frames = FrameProtocol(client=True, extensions=[])
    kind = source.random()
    if kind < 0.6:
        text = json.dumps(source.choice(JSON_BODIES))
        return bytes(frames.send_data(text, fin=source.random() < 0.8))
    if kind < 0.75:
        name = source.choice((b"x", b"", b"\xff"))
        data = bytes([source.choice((1, 1, 0, 255)), len(name)]) + name + bytes(8)
        return bytes(frames.send_data(data, fin=True))
    if kind < 0.85:
        return bytes(frames.ping(source.randbytes(source.randrange(100))))
    if kind < 0.9:
        return bytes(frames.close(source.choice((1000, 1001, 3000)), "bye"))
    opcode = source.choice([*Opcode, 3, 11])
    first = opcode | source.choice((0x80, 0, 0x40, 0x70))
    return bytes([first, source.randrange(256)]) + source.randbytes(
        source.randrange(40)
    )


# ---- tampering ------------------------------------------------------------------------


def _flip(source: random.Random, data: bytes) -> bytes:
    if not data:
        return data
    changed = bytearray(data)
    changed[source.randrange(len(data))] ^= 1 << source.randrange(8)
    return bytes(changed)


def _insert(source: random.Random, data: bytes) -> bytes:
    at = source.randrange(len(data) + 1)
    return data[:at] + source.choice(PIECES) + data[at:]


def _insert_header(source: random.Random, data: bytes) -> bytes:
    return data.replace(b"\r\n", b"\r\n" + source.choice(PIECES), 1)


def _remove(source: random.Random, data: bytes) -> bytes:
    start = source.randrange(len(data) + 1)
    return data[:start] + data[start + source.randint(1, 40) :]


def _cut(source: random.Random, data: bytes) -> bytes:
    return data[: source.randrange(len(data) + 1)]


def _repeat(source: random.Random, data: bytes) -> bytes:
    start = source.randrange(len(data) + 1)
    piece = data[start : start + source.randint(1, 200)]
    return data[:start] + piece * source.choice((2, 3, 50)) + data[start:]


TAMPERINGS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    *(_flip, _insert, _insert_header, _remove, _cut, _repeat),
)
