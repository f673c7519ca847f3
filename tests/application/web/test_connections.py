"""How many connections there may be, and that they give back what they took."""

from __future__ import annotations

import gc
import os
import sys

import pytest
import trio

from pie_trio.application.web.shell import ShellConfig
from pie_trio.application.web.shell.protocol import Protocol
from tests.application.web.clients import HANDSHAKE, Client, connect
from tests.application.web.servers import app_with, running, settle


async def hello() -> str:
    return "hello"


async def test_too_many_connections_are_told_so_and_later_ones_served() -> None:
    config = ShellConfig(max_connections=2)
    async with running(app_with(hello=hello), config) as server:
        async with await server.connect() as first, await server.connect() as second:
            assert (await first.get("/hello")).status == 200
            assert (await second.get("/hello")).status == 200
            async with await server.connect() as third:
                response = await third.read_response()
                assert response.status == 503
                assert "2 connections" in response.error["message"]
                assert response.headers["retry-after"] == "1"
                await third.expect_end()
        await settle()
        await server.check_alive()


async def test_one_address_cannot_take_them_all() -> None:
    config = ShellConfig(max_connections_per_address=2)
    async with running(
        app_with(hello=hello), config, addresses=("0.0.0.0:0",)
    ) as server:
        async with await server.connect() as first, await server.connect() as second:
            assert (await first.get("/hello")).status == 200
            assert (await second.get("/hello")).status == 200
            async with await server.connect() as third:
                assert (await third.read_response()).status == 429
            async with await connect_from("127.0.0.2", server.port) as other:
                assert (await other.get("/hello")).status == 200


async def connect_from(address: str, port: int) -> Client:
    stream = await trio.open_tcp_stream("127.0.0.1", port, local_address=address)
    return Client(stream, stream)


def num_open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # a Path opens one, too


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc to count open files in")
async def test_a_storm_of_connections_that_reset_leaves_nothing_behind() -> None:
    config = ShellConfig(max_connections=50)
    async with running(app_with(hello=hello), config) as server:
        await server.check_alive()
        await settle()
        gc.collect()
        before = num_open_files()

        async def storm(number: int) -> None:
            for turn in range(20):
                client = await connect(server.port)
                match (number + turn) % 4:
                    case 0:
                        pass
                    case 1:
                        await client.send(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
                    case 2:
                        await client.send(HANDSHAKE)
                    case _:
                        await client.send(b"\x00")
                await client.leave("rst" if turn % 2 else "fin")

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(storm, number)
        await settle()
        await server.check_alive()
        await settle()
        assert num_open_files() == before


async def test_a_connection_that_fails_by_a_bug_ends_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(self: Protocol, event: object) -> None:
        raise KeyError("a bug")

    async with running(app_with(hello=hello)) as server:
        with monkeypatch.context() as patch:
            patch.setattr(Protocol, "handle", fail)
            async with await server.connect() as client:
                await client.send_get("/hello")
                await client.expect_end()
        await server.check_alive()
    assert "a connection failed" in caplog.text
