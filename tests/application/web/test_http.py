"""Requests and answers, over sockets."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest
import trio
from quart import request

from pie_trio.application.web.shell import ShellConfig
from tests.application.web.servers import app_with, read_body, running, settle

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


async def hello() -> dict[str, str]:
    return {"path": request.path, "method": request.method}


async def echo() -> bytes:
    return await read_body()


async def stream() -> AsyncGenerator[bytes]:
    for number in range(3):
        await trio.lowlevel.checkpoint()
        yield b"%d" % number


async def count_stream() -> tuple[AsyncGenerator[bytes], int]:
    return stream(), 200


APP = app_with(hello=hello, echo=echo, stream=count_stream)


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


async def test_a_connection_serves_many_requests() -> None:
    async with running(APP) as server, await server.connect() as client:
        for number in range(30):
            body = b"x" * number
            await client.send(post("/echo", body))
            response = await client.read_response()
            assert (response.status, response.body) == (200, body)
            assert "connection" not in response.headers
            assert "server" not in response.headers


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with running(APP) as server, await server.connect() as client:
        await client.send(b"".join(post("/echo", b"%d" % n) for n in range(40)))
        answers = [(await client.read_response()).body for _ in range(40)]
        assert answers == [b"%d" % n for n in range(40)]


async def test_a_stream_is_sent_in_chunks_and_the_connection_stays() -> None:
    async with running(APP) as server, await server.connect() as client:
        for _ in range(2):
            response = await client.get("/stream")
            assert response.body == b"012"
            assert response.headers["transfer-encoding"] == "chunked"


async def test_an_answer_is_one_segment() -> None:
    async with running(APP) as server, await server.connect() as client:
        await client.send_get("/hello")
        answer = bytes(await client.stream.receive_some())
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b'"path":"/hello"}\n')


async def test_small_writes_are_not_delayed() -> None:
    nodelay = list[int]()

    async def look() -> str:
        return "x"

    async with running(app_with(look=look)) as server:
        opened = trio.SocketStream.__init__

        def note(self: trio.SocketStream, sock: trio.socket.SocketType) -> None:
            opened(self, sock)
            nodelay.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trio.SocketStream, "__init__", note)
            async with await server.connect() as client:
                await client.get("/look")
    assert len(nodelay) == 2  # the client's and the server's
    assert all(nodelay)


async def test_head_has_no_body_and_the_connection_stays() -> None:
    async with running(APP) as server, await server.connect() as client:
        await client.send(b"HEAD /hello HTTP/1.1\r\nHost: x\r\n\r\n")
        response = await client.read_response("HEAD")
        assert (response.status, response.body) == (200, b"")
        assert (await client.get("/hello")).status == 200


async def test_http_1_0_is_answered_and_closed() -> None:
    async with running(APP) as server, await server.connect() as client:
        await client.send(b"GET /stream HTTP/1.0\r\n\r\n")
        head, _, body = (await client.read_all()).partition(b"\r\n\r\n")
        assert b" 200 " in head
        assert b"chunked" not in head.lower()
        assert body == b"012"


async def test_connection_close_is_obeyed() -> None:
    async with running(APP) as server, await server.connect() as client:
        response = await client.get("/hello", "Connection: close")
        assert response.headers["connection"] == "close"
        await client.expect_end()


async def test_absolute_targets_are_paths() -> None:
    async with running(APP) as server, await server.connect() as client:
        for target, status in [
            ("http://x/hello?a=/b", 200),
            ("http://x", 404),
            ("https://x?q", 404),
        ]:
            await client.send(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert (await client.read_response()).status == status
        await client.send(b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await client.read_response()).status == 404


async def test_an_upgrade_to_http_2_is_ignored() -> None:
    async with running(APP) as server, await server.connect() as client:
        upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c")
        response = await client.get("/hello", *upgrade, "HTTP2-Settings: AAAA")
        assert response.status == 200


async def test_the_body_is_asked_for_and_the_connection_stays() -> None:
    async with running(APP) as server, await server.connect() as client:
        ask = "POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
        await client.send(f"{ask}Content-Length: 5\r\n\r\n".encode())
        assert (await client.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        await client.send(b"hello")
        assert (await client.read_response()).body == b"hello"
        assert (await client.get("/hello")).status == 200


async def test_a_body_over_the_limit_is_not_asked_for() -> None:
    config = ShellConfig(max_body_bytes=4)
    async with running(APP, config) as server, await server.connect() as client:
        ask = "POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
        await client.send(f"{ask}Content-Length: 5\r\n\r\n".encode())
        assert (await client.read_until(b"\r\n")).startswith(b"HTTP/1.1 413 ")


async def test_an_answer_before_the_body_ends_the_connection() -> None:
    """Without that, the late body would be read as the next request, or hang it."""
    async with running(APP) as server, await server.connect() as client:
        await client.send(
            b"POST /none HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"
        )
        response = await client.read_response()
        assert response.status == 404
        assert response.headers["connection"] == "close"
        await client.send(b"GET /")  # five bytes, of the body
        await client.expect_end()


async def test_an_early_answer_reaches_a_client_that_still_sends() -> None:
    config = ShellConfig(close_seconds=0.1)
    async with running(APP, config) as server, await server.connect() as client:
        await client.send(
            b"POST /none HTTP/1.1\r\nHost: x\r\nContent-Length: 67000000\r\n\r\n"
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_for_ever, b"x" * 65536)
            assert (await client.read_response()).status == 404
            await client.expect_end()


async def test_a_handler_that_sends_headers_that_are_none_fails_alone() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        is_bad = scope["path"] == "/inject"
        headers = [(b"a", b"b\r\nc: d" if is_bad else b"b")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async with running(app) as server:
        async with await server.connect() as client:
            response = await client.get("/inject")
            assert response.status == 500
            assert response.error["code"] == "internal"
        await server.check_alive()


async def test_a_part_after_the_end_of_an_answer_is_not_sent() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        part = {"type": "http.response.body", "body": b"x", "more_body": True}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send(part)
        await send({"type": "http.response.body", "body": b"y"})
        await send(part)

    async with running(app) as server:
        async with await server.connect() as client:
            for _ in range(3):
                assert (await client.get()).body == b"xy"


async def test_an_asgi_application_hears_of_its_end() -> None:
    received = list[str]()
    done = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": False})
        while True:
            received.append((await receive())["type"])
            if received[-1] == "http.disconnect":
                done.set()
                return

    async with running(app) as server, await server.connect() as client:
        assert (await client.get()).body == b"x"
        await done.wait()
        assert received == ["http.request", "http.disconnect"]
        assert (await client.get()).status == 200


async def large() -> bytes:
    return b"x" * 300_000


async def test_the_end_of_a_large_early_answer_is_not_lost() -> None:
    """Closing while bytes of the client are unread would drop what is not sent yet."""
    async with running(app_with(large=large)) as server:
        async with await server.connect(receive_buffer=4096) as client:
            head = b"POST /large HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n"
            await client.send(head)
            num_bytes = 0
            while num_bytes < 290_000:  # the server has written all, but not sent it
                num_bytes += len(await client.stream.receive_some(1024))
            await settle()
            await client.send(b"late")
            await settle()
            assert num_bytes + len(await client.read_all()) >= 300_000
