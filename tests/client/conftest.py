"""A whole server over a fake engine, and clients of it on each event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from pie_trio.client import Client
from tests.application.conftest import language, open_fake
from tests.application.server.conftest import open_server

if TYPE_CHECKING:
    from tests.application.server.conftest import OpenServer, Served

__all__ = ["language", "open_fake", "open_server"]

OpenClient = Callable[..., AbstractAsyncContextManager[tuple[Client, "Served"]]]
OnLoop = Callable[..., Awaitable[Any]]


@pytest.fixture
def open_client(open_server: OpenServer) -> OpenClient:
    """Opens a server, and a client of it in the test's own loop."""

    @asynccontextmanager
    async def open_it(**options: Any) -> AsyncGenerator[tuple[Client, Served]]:
        async with open_server(**options) as served:
            async with Client(url_of(served)) as pie:
                yield pie, served

    return open_it


@pytest.fixture(params=["trio", "asyncio"])
def on_loop(request: pytest.FixtureRequest) -> OnLoop:
    """Calls a function with a client of a server, in a loop of each kind."""

    async def call(served: Served, function: Callable[[Client], Awaitable[Any]]) -> Any:
        async def use() -> Any:
            async with Client(url_of(served)) as pie:
                return await function(pie)

        if request.param == "trio":
            return await use()
        return await trio.to_thread.run_sync(partial(asyncio.run, use()))

    return call


async def in_thread(function: Callable[[], Any]) -> Any:
    """Call what blocks, while the server goes on."""
    return await trio.to_thread.run_sync(function)


def url_of(served: Served) -> str:
    return f"http://127.0.0.1:{served.api.port}"


async def until(condition: Callable[[], object]) -> None:
    """Wait until something that follows from messages on loopback holds."""
    with trio.fail_after(60):  # a child may have to start Python on a busy machine
        while not condition():
            await trio.lowlevel.checkpoint()
