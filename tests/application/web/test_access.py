"""The access log: one line for each request."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import trio
from quart import websocket

from pie_trio.application.web import make_event_stream
from tests.application.web.clients import open_websocket
from tests.application.web.servers import Probe, app_with, running, settle

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    import pytest

    from pie_trio.application.web import WebApp

LOGGER = "pie_trio.application.web.shell.access"


def make_app(probe: Probe) -> WebApp:
    async def hello() -> str:
        return "hello"

    async def fail() -> str:
        raise ValueError

    async def stream() -> Any:
        async def events() -> AsyncGenerator[bytes]:
            with probe.watch():
                yield b"12345"
                await trio.sleep_forever()

        return make_event_stream(events())

    app = app_with(hello=hello, fail=fail, stream=stream)

    @app.websocket("/ws")
    async def ws() -> None:
        await websocket.send("hello")

    return app


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [r.access for r in caplog.records if r.name == LOGGER]  # type: ignore[attr-defined]


async def test_each_request_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=LOGGER)
    probe = Probe()
    async with running(make_app(probe)) as server:
        async with await server.connect() as client:
            await client.get("/hello?key=secret%0a")
            await client.get("/none%0ainjected")
            await client.get("/fail")
        async with await server.connect() as client:
            await client.send(b"GARBAGE\r\n\r\n")
            await client.read_all()
        async with await server.connect() as client:
            ws = await open_websocket(client)
            await ws.read_close()
        async with await server.connect() as client:
            await client.send_get("/stream")
            await client.read_until(b"12345")
        await probe.wait_for_end()
        await settle()
    seen = [(a["method"], a["path"], a["status"], a["outcome"]) for a in lines(caplog)]
    assert sorted(seen) == [
        ("-", "-", 400, "refused"),
        ("GET", "/fail", 500, "done"),
        ("GET", "/hello", 200, "done"),
        ("GET", "/none%0ainjected", 404, "done"),
        ("GET", "/stream", 200, "cancelled"),
        ("GET", "/ws", 101, "done"),
    ]
    sent = {a["path"]: a["sent_bytes"] for a in lines(caplog)}
    assert (sent["/hello"], sent["/stream"]) == (5, 5)
    assert all(a["peer"] == "127.0.0.1" for a in lines(caplog))
    assert all(0 <= a["milliseconds"] < 10_000 for a in lines(caplog))
    text = [r.message for r in caplog.records if r.name == LOGGER]
    assert "secret" not in "".join(text)
    assert not any("\n" in line for line in text)
    assert text[0].startswith('127.0.0.1 "GET /hello" 200 5 B ')


async def test_a_refusal_amid_a_request_is_its_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger=LOGGER)
    probe = Probe()

    async def wait() -> None:
        with probe.watch():
            await trio.sleep_forever()

    async with running(app_with(wait=wait)) as server:
        async with await server.connect() as client:
            await client.send(
                b"POST /wait HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            await probe.began.wait()
            await client.send(b"zzz\r\n")
            await client.read_all()
        await settle()
    (line,) = lines(caplog)
    assert (line["path"], line["status"]) == ("/wait", 400)
    assert line["outcome"] == "refused"


async def test_unix_sockets_have_no_address(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO, logger=LOGGER)
    path = tmp_path / "x"
    async with running(make_app(Probe()), addresses=(f"unix:{path}",)):
        stream = await trio.open_unix_socket(path)
        await stream.send_all(b"GET /hello HTTP/1.0\r\n\r\n")
        while await stream.receive_some():
            pass
        stream.socket.close()
    assert [line["peer"] for line in lines(caplog)] == ["unix"]
