"""The application's bounds and its errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from quart import abort, websocket

from pie_trio.application.web import make_app
from pie_trio.application.web.problems import problem_code
from tests.application.web.clients import HANDSHAKE
from tests.application.web.servers import TIME_LIMIT_SECONDS, app_with, running

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def not_found() -> str:
    abort(404, "there is no such thing")


async def busy() -> str:
    abort(429, "later")


async def unavailable() -> str:
    abort(503, "the model is loading")


async def teapot() -> str:
    abort(418)


async def in_a_nursery(*works: Callable[[], Awaitable[object]]) -> str:
    async with trio.open_nursery() as nursery:
        for work in works:
            nursery.start_soon(work)
    return "x"


async def one_in_a_group() -> str:
    return await in_a_nursery(not_found)


async def deep_in_groups() -> str:
    async def inner() -> None:
        await in_a_nursery(not_found)

    return await in_a_nursery(inner)


async def bug() -> None:
    raise KeyError("a secret")


async def two_in_a_group() -> str:
    return await in_a_nursery(not_found, bug)


@pytest.mark.parametrize(
    ("handler", "status", "code", "message"),
    [
        (not_found, 404, "not-found", "there is no such thing"),
        (busy, 429, "too-many", "later"),
        (unavailable, 503, "unavailable", "the model is loading"),
        (one_in_a_group, 404, "not-found", "there is no such thing"),
        (deep_in_groups, 404, "not-found", "there is no such thing"),
        (two_in_a_group, 500, "internal", "its log says why"),
    ],
)
async def test_errors_are_json(
    handler: Callable[[], Any], status: int, code: str, message: str
) -> None:
    async with running(app_with(run=handler)) as server:
        async with await server.connect() as client:
            response = await client.get("/run")
            assert response.status == status
            assert response.error["code"] == code
            assert message in response.error["message"]
            assert b"secret" not in response.body


async def test_what_is_not_there_is_json_and_nothing_redirects() -> None:
    async def hello() -> str:
        return "hello"

    app = app_with(hello=hello)
    app.add_url_rule("/folder/", "folder", hello)
    async with running(app) as server, await server.connect() as client:
        for path, status in [
            ("/", 404),
            ("/hello", 200),
            ("/hello/", 200),
            ("/folder", 200),
            ("/static/x", 404),
            ("/../etc/passwd", 404),
            ("/%2e%2e/etc", 404),
            ("/%ff%00", 404),
        ]:
            response = await client.get(path)
            assert response.status == status, path
            if status != 200:
                assert response.error["code"] == "not-found"
        await client.send(b"DELETE /hello HTTP/1.1\r\nHost: x\r\n\r\n")
        response = await client.read_response()
        assert response.status == 405
        assert "GET" in response.headers["allow"]
        assert response.error["code"] == "method-not-allowed"
        assert response.error["message"].startswith("/hello takes GET")


async def test_a_path_that_is_asked_in_the_wrong_way_says_which_is_right() -> None:
    app = app_with(hello=not_found)
    app.add_websocket("/ws", "ws", bug)
    async with running(app) as server:
        async with await server.connect() as client:
            missing = await client.get("/nope")
            assert missing.error["message"] == "there is nothing at /nope"
            response = await client.get("/ws")
            assert (response.status, response.headers["upgrade"]) == (426, "websocket")
            assert response.error["message"].startswith("/ws is a WebSocket")
            assert (await client.get("/nope")).status == 404, "the connection goes on"
            await client.send(HANDSHAKE.replace(b"/ws", b"/hello") + b"\r\n")
            response = await client.read_response()
            assert response.status == 400
            assert response.error["message"] == "/hello is no WebSocket: send a request"


def test_hooks_that_would_never_run_are_refused() -> None:
    app = make_app("test")
    for name in (
        *("before_serving", "after_serving", "while_serving"),
        "add_background_task",
    ):
        with pytest.raises(RuntimeError, match="around serve"):
            getattr(app, name)(lambda: None)


@pytest.mark.parametrize(
    ("status", "code"), [(413, "too-large"), (418, "i'm-a-teapot"), (599, "http-599")]
)
def test_kinds_of_errors_have_names(status: int, code: str) -> None:
    assert problem_code(status) == code


async def test_an_error_after_which_the_handler_went_on_is_none() -> None:
    async def retry() -> str:
        for _ in range(2):
            try:
                await in_a_nursery(bug)
            except* KeyError:
                pass
        return "fine"

    async with running(app_with(retry=retry)) as server:
        async with await server.connect() as client:
            assert (await client.get("/retry")).body == b"fine"


async def test_quarts_own_test_client_can_be_used() -> None:
    """In memory and without the shell: enough for handlers that neither stream nor drain."""
    app = app_with(run=not_found)

    @app.websocket("/ws")
    async def ws() -> None:
        while True:
            await websocket.send(await websocket.receive())

    with trio.fail_after(TIME_LIMIT_SECONDS):
        client = app.test_client()
        response = await client.get("/run")
        assert response.status_code == 404
        async with client.websocket("/ws") as socket:
            for message in ("hello", "a", b"\0"):
                await socket.send(message)
                assert await socket.receive() == message
