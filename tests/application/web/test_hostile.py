"""Single clients that ended, or hung, a whole server of stock Hypercorn, and some more."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
import trio
from quart import request, websocket

from pie_trio.application.web.shell import ShellConfig
from tests.application.web.clients import HANDSHAKE
from tests.application.web.servers import (
    LONG_SECONDS,
    Probe,
    app_with,
    read_body,
    running,
    settle,
)
from tests.application.web.test_framing import HOSTILE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from pie_trio.application.web import WebApp


def make_hostile_app() -> WebApp:
    app = app_with(echo=echo)

    @app.websocket("/ws")
    async def ws() -> None:
        while True:
            await websocket.send(await websocket.receive())

    return app


async def echo() -> bytes:
    return await read_body()


CONFIG = ShellConfig(max_head_bytes=1024, max_headers=8, max_body_bytes=100)


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_request_is_refused_and_the_server_lives(name: str) -> None:
    data, status = HOSTILE[name]
    async with running(make_hostile_app(), CONFIG) as server:
        async with await server.connect() as client:
            await client.send(data)
            response = await client.read_response()
            assert response.status == status
            assert response.headers["connection"] == "close"
            assert response.error["message"]
            await client.expect_end()
        await server.check_alive()


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (b"Content-Length: 5\r\n\r\nhello", 400),
        (b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"Sec-WebSocket-Extensions: \xe9\r\n\r\n", 400),
        (b"Sec-WebSocket-Protocol: \xe9\r\n\r\n", 400),
        (b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", 400),
        (b"Sec-WebSocket-Version: 12\r\n\r\n", 400),
        (b"Upgrade: websocket\r\n\r\n", 400),
    ],
)
async def test_a_hostile_handshake_is_refused_and_the_server_lives(
    lines: bytes, status: int
) -> None:
    async with running(make_hostile_app()) as server:
        async with await server.connect() as client:
            await client.send(HANDSHAKE + lines)
            response = await client.read_response()
            assert response.status == status
            assert response.error["message"]
            await client.expect_end()
        await server.check_alive()


@pytest.mark.parametrize(
    ("key", "version", "status"),
    [(b"AAAA", b"13", 400), (b"?", b"13", 400), (b"A" * 22 + b"==", b"8", 426)],
)
async def test_a_handshake_must_be_one(key: bytes, version: bytes, status: int) -> None:
    async with running(make_hostile_app()) as server, await server.connect() as client:
        await client.send(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\n"
            b"Upgrade: WebSocket\r\nSec-WebSocket-Key: "
            + key
            + b"\r\nSec-WebSocket-Version: "
            + version
            + b"\r\n\r\n"
        )
        response = await client.read_response()
        assert response.status == status
        if status == 426:
            assert response.headers["sec-websocket-version"] == "13"


@pytest.mark.parametrize(
    "extra", [b"x", b"\x81\x80\0\0\0\0", b"GET / HTTP/1.1\r\n\r\n"]
)
async def test_bytes_after_a_handshake_end_nobody_else(extra: bytes) -> None:
    async with running(make_hostile_app()) as server:
        async with await server.connect() as client:
            await client.send(HANDSHAKE + b"\r\n" + extra)
            assert b" 101 " in await client.read_until(b"\r\n\r\n")
        await server.check_alive()


async def test_bytes_after_a_handshake_wait_until_it_is_accepted() -> None:
    accept = trio.Event()
    app = app_with()

    @app.websocket("/ws")
    async def ws() -> None:
        await accept.wait()
        await websocket.send(await websocket.receive())

    async with running(app) as server, await server.connect() as client:
        await client.send(HANDSHAKE + b"\r\n\x81\x82\0\0\0\0hi")
        await settle()
        accept.set()
        assert b" 101 " in await client.read_until(b"\r\n\r\n")
        assert await client.read_until(b"hi")


async def test_a_refused_handshake_is_an_ordinary_answer() -> None:
    async with running(make_hostile_app()) as server, await server.connect() as client:
        await client.send(HANDSHAKE.replace(b"/ws", b"/none") + b"\r\nextra")
        response = await client.read_response()
        assert response.status == 404
        assert response.error["code"] == "not-found"
        await client.expect_end()


async def test_a_websocket_path_without_upgrade_asks_for_one() -> None:
    async with running(make_hostile_app()) as server, await server.connect() as client:
        response = await client.get("/ws")
        assert response.status == 426
        assert response.error["message"]


async def test_a_body_that_breaks_off_in_a_bad_chunk_cancels_the_handler() -> None:
    probe = Probe()

    async def read() -> str:
        with probe.watch():
            await request.get_data()
        return "x"

    config = ShellConfig(close_seconds=LONG_SECONDS)  # it does not wait for the client
    async with (
        running(app_with(read=read), config) as server,
        await server.connect() as client,
    ):
        await client.send(
            b"POST /read HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"5\r\nhello\r\n"
        )
        await probe.began.wait()
        await client.send(b"x\r\n")
        assert (await client.read_response()).status == 400
        await client.expect_end()
        await probe.wait_for_end()
    assert (probe.num_cancelled, probe.num_ended) == (1, 1)


async def test_a_bad_chunk_cancels_a_handler_that_does_not_listen() -> None:
    probe = Probe()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with probe.watch():
            await trio.sleep_forever()

    config = ShellConfig(close_seconds=LONG_SECONDS)
    async with running(app, config) as server, await server.connect() as client:
        await client.send(
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n"
        )
        assert (await client.read_response()).status == 400
        await probe.wait_for_end()
    assert (probe.num_cancelled, probe.num_ended) == (1, 1)


async def test_a_bad_chunk_after_the_answer_has_begun_cuts_it_off() -> None:
    async def stream() -> object:
        async def endless() -> AsyncGenerator[bytes]:
            yield b"begin"
            await trio.sleep_forever()

        return endless()

    async with running(app_with(stream=stream)) as server:
        async with await server.connect() as client:
            await client.send(
                b"POST /stream HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            await client.read_until(b"begin\r\n")
            await client.send(b"x\r\n")
            assert await client.read_all() == b""
        await server.check_alive()


async def test_errors_of_handlers_show_nothing_and_end_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail() -> str:
        raise ValueError("a secret")

    async def fail_in_nursery() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            nursery.start_soon(fail)
            await trio.sleep_forever()

    app = app_with(fail=fail, group=fail_in_nursery)
    caplog.set_level(logging.CRITICAL, logger="test")
    async with running(app) as server, await server.connect() as client:
        for path in ("/fail", "/group"):
            caplog.clear()
            caplog.set_level(logging.ERROR, logger="test")
            response = await client.get(path)
            assert response.status == 500
            assert response.error["code"] == "internal"
            assert b"secret" not in response.body
            assert b"Traceback" not in response.body
            (record,) = (r for r in caplog.records if r.levelno == logging.ERROR)
            assert record.exc_info
        await server.check_alive()


async def test_an_error_in_a_stream_cuts_it_off_and_ends_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def stream() -> object:
        async def broken() -> AsyncGenerator[bytes]:
            yield b"begin"
            raise ValueError("a secret")

        return broken()

    async with running(app_with(stream=stream)) as server:
        async with await server.connect() as client:
            await client.send_get("/stream")
            answer = await client.read_all()
            assert b"begin" in answer
            assert not answer.endswith(b"0\r\n\r\n")
            assert b"secret" not in answer
        await server.check_alive()
    assert [r.message for r in caplog.records if r.levelno == logging.ERROR] == [
        "a handler failed"
    ]


async def test_an_application_that_is_none_is_an_error_500() -> None:
    async def app(scope: object, receive: object, send: object) -> None:
        raise ExceptionGroup("several", [ValueError(), KeyError()])

    async with running(app) as server, await server.connect() as client:
        response = await client.get()
        assert response.status == 500
        assert json.loads(response.body)["error"]["code"] == "internal"


@pytest.mark.parametrize("body", [b"\xff", b"{", b"[" * 100_000, b"nope"])
async def test_json_that_is_none_is_the_clients_fault(body: bytes) -> None:
    async def parse() -> object:
        return {"got": await request.get_json()}

    async with running(app_with(parse=parse)) as server:
        async with await server.connect() as client:
            await client.send(
                b"POST /parse HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            response = await client.read_response()
            assert response.status == 400
            assert "JSON" in response.error["message"]
