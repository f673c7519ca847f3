"""The servers that :mod:`benchmarks.server` compares: the same three routes on each.

``python -m benchmarks._web_servers NAME`` serves on a free port of loopback and prints it.
"""

from __future__ import annotations

import gc
import importlib.util
import socket
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

EVENT = b'data: {"token": "hello", "index": 12345678}\n\n'

IDLE_SECONDS = 600
"""No connection may be closed while others are measured."""


async def _events(num_events: int) -> AsyncGenerator[bytes]:
    for _ in range(num_events):
        yield EVENT


def _bind() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(1024)
    print(sock.getsockname()[1], flush=True)
    return sock


def _make_quart_app() -> Any:
    from quart import request, websocket

    from pie_trio.application.web import make_app, make_event_stream

    app = make_app("bench")

    @app.get("/json")
    async def answer() -> dict[str, Any]:
        return {"model": "tiny", "tokens": [1, 2, 3]}

    @app.get("/events")
    async def events() -> Any:
        return make_event_stream(_events(int(request.args["n"])))

    @app.websocket("/ws")
    async def ws() -> None:
        while True:
            await websocket.send(await websocket.receive())

    return app


async def _asgi_app(scope: Any, receive: Any, send: Any) -> None:
    """The same without Quart."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept", "headers": []})
        while (event := await receive())["type"] == "websocket.receive":
            message = {"bytes": event["bytes"], "text": event["text"]}
            await send({"type": "websocket.send", **message})
        return
    is_json = scope["path"] == "/json"
    kind = b"application/json" if is_json else b"text/event-stream"
    headers = [(b"content-type", kind)]
    body = b'{"model": "tiny", "tokens": [1, 2, 3]}'
    if is_json:
        headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if is_json:
        await send({"type": "http.response.body", "body": body})
        return
    async for event in _events(int(scope["query_string"].rpartition(b"=")[2])):
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _serve_shell(app: Any) -> None:
    import trio

    from pie_trio.application.web.shell import Listener, ShellConfig, serve

    async def run() -> None:
        sock = trio.socket.from_stdlib_socket(_bind())
        listener = Listener(trio.SocketListener(sock), "http://127.0.0.1")
        config = ShellConfig(
            max_connections=4096,
            max_connections_per_address=4096,
            header_seconds=IDLE_SECONDS,
            keep_alive_seconds=IDLE_SECONDS,
        )
        await serve(app, [listener], config, shutdown=trio.Event())

    trio.run(run)


def _serve_pie() -> None:
    _serve_shell(_make_quart_app())


def _serve_pie_asgi() -> None:
    _serve_shell(_asgi_app)


def _serve_hypercorn() -> None:
    import trio
    from hypercorn.config import Config
    from hypercorn.trio import serve

    config = Config()
    config.bind = [f"fd://{_bind().detach()}"]
    config.errorlog = None
    config.keep_alive_timeout = IDLE_SECONDS
    trio.run(serve, _make_quart_app(), config)


def _make_starlette_app() -> Any:
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, StreamingResponse
    from starlette.routing import Route, WebSocketRoute
    from starlette.websockets import WebSocketDisconnect

    async def answer(_request: Any) -> Any:
        return JSONResponse({"model": "tiny", "tokens": [1, 2, 3]})

    async def events(request: Any) -> Any:
        source = _events(int(request.query_params["n"]))
        return StreamingResponse(source, media_type="text/event-stream")

    async def ws(websocket: Any) -> None:
        await websocket.accept()
        try:
            while True:
                await websocket.send_text(await websocket.receive_text())
        except WebSocketDisconnect:
            pass

    routes = [
        Route("/json", answer),
        Route("/events", events),
        WebSocketRoute("/ws", ws),
    ]
    return Starlette(routes=routes)


def _serve_uvicorn(**options: Any) -> None:
    import uvicorn

    sock = _bind()
    config = uvicorn.Config(
        _make_starlette_app(),
        log_level="error",
        access_log=False,
        timeout_keep_alive=IDLE_SECONDS,
        **options,
    )
    uvicorn.Server(config).run(sockets=[sock])


def _serve_uvicorn_plain() -> None:
    _serve_uvicorn(loop="asyncio", http="h11", ws="wsproto")


def _serve_uvicorn_fast() -> None:
    _serve_uvicorn(loop="uvloop", http="httptools", ws="websockets-sansio")


SERVERS: dict[str, tuple[Callable[[], None], tuple[str, ...]]] = {
    "pie": (_serve_pie, ()),
    "pie-asgi": (_serve_pie_asgi, ()),
    "hypercorn": (_serve_hypercorn, ()),
    "uvicorn": (_serve_uvicorn_plain, ("uvicorn", "starlette")),
    "uvicorn-fast": (
        _serve_uvicorn_fast,
        ("uvicorn", "starlette", "uvloop", "httptools", "websockets"),
    ),
}
"""What starts each, and the modules that it needs beyond ours."""


def why_not(name: str) -> str | None:
    """Return why a server cannot be run; None if it can."""
    if name not in SERVERS:
        return f"there is none of that name: choose from {', '.join(SERVERS)}"
    missing = [m for m in SERVERS[name][1] if importlib.util.find_spec(m) is None]
    if missing:
        return f"{', '.join(missing)} cannot be imported: install the group `bench`"
    return None


if __name__ == "__main__":
    start, _ = SERVERS[sys.argv[1]]
    gc.freeze()
    start()
