"""A server on loopback in the test's own loop, and an application that tells what befell it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio
from quart import request

from pie_trio.application.web import make_app
from pie_trio.application.web.shell import (
    ShellConfig,
    open_listeners,
    parse_address,
    serve,
)
from tests.application.web.clients import Client, connect

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Callable

    from pie_trio.application.web import WebApp

TIME_LIMIT_SECONDS = 20.0

LONG_SECONDS = 3600.0
"""For what must not end by itself within a test."""


@dataclass
class Running:
    """A server.

    Attributes:
        urls: Of its listeners.
        shutdown: Set it to stop.
        ended: Set when ``serve`` has returned.
    """

    urls: list[str]
    shutdown: trio.Event
    ended: trio.Event
    scope: trio.CancelScope

    @property
    def port(self) -> int:
        return int(self.urls[0].rpartition(":")[2])

    async def connect(self, **options: Any) -> Client:
        return await connect(self.port, **options)

    async def check_alive(self) -> None:
        """Another client is served as if nothing had happened."""
        async with await self.connect() as client:
            await client.send(b"GET /alive HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await client.read_response()).status in (200, 404)


@asynccontextmanager
async def running(
    app: Any,
    config: ShellConfig | None = None,
    *,
    addresses: tuple[str, ...] = ("127.0.0.1:0",),
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncGenerator[Running]:
    """Serve an application; at the end it is cancelled, whatever still runs."""
    shutdown, ended = trio.Event(), trio.Event()
    parsed = [parse_address(text) for text in addresses]
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with (
            open_listeners(parsed, ssl_context) as listeners,
            trio.open_nursery() as nursery,
        ):

            async def run(*, task_status: trio.TaskStatus[list[str]]) -> None:
                await serve(
                    app,
                    listeners,
                    config or ShellConfig(),
                    shutdown=shutdown,
                    task_status=task_status,
                )
                ended.set()

            urls = await nursery.start(run)
            yield Running(urls, shutdown, ended, nursery.cancel_scope)
            nursery.cancel_scope.cancel()


@dataclass
class Probe:
    """What handlers went through.

    Attributes:
        began: Set when a handler runs.
        num_cancelled: Handlers that were cancelled.
        num_ended: Handlers that have ended in any way.
    """

    began: trio.Event = field(default_factory=trio.Event)
    num_cancelled: int = 0
    num_ended: int = 0
    _changed: trio.Event = field(default_factory=trio.Event)

    def watch(self) -> _Watch:
        return _Watch(self)

    def note(self, *, is_cancelled: bool) -> None:
        self.num_cancelled += is_cancelled
        self.num_ended += 1
        self._changed.set()

    async def wait_for_end(self) -> None:
        """Wait until a handler has ended, which must be soon."""
        with trio.fail_after(30):
            while not self.num_ended:
                self._changed = trio.Event()
                await self._changed.wait()


class _Watch:
    """A block of a handler; a closed generator counts as cancelled."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe

    def __enter__(self) -> None:
        self._probe.began.set()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        ended_by = (trio.Cancelled, GeneratorExit)
        is_cancelled = kind is not None and issubclass(kind, ended_by)
        self._probe.note(is_cancelled=is_cancelled)


async def read_body() -> bytes:
    """Return the body of the request that is handled."""
    data = await request.get_data()
    assert isinstance(data, bytes)
    return data


async def settle() -> None:
    """Let the server see what was sent; loopback has delivered it already."""
    for _ in range(40):
        await trio.lowlevel.checkpoint()


def app_with(**handlers: Callable[[], Any]) -> WebApp:
    """An application with a GET route of each name."""
    app = make_app("test")
    for name, handler in handlers.items():
        app.add_url_rule(f"/{name}", name, handler, methods=["GET", "POST", "PUT"])
    return app


__all__ = [
    "LONG_SECONDS",
    "TIME_LIMIT_SECONDS",
    "Probe",
    "Running",
    "app_with",
    "read_body",
    "running",
    "settle",
]
