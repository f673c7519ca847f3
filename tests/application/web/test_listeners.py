"""Addresses, and what is in the way of listening there."""

from __future__ import annotations

import socket
import stat
from typing import TYPE_CHECKING

import pytest
import trio

from pie_trio.application.web.shell import (
    Address,
    TcpAddress,
    UnixAddress,
    open_listeners,
    parse_address,
)
from pie_trio.errors import ConfigError
from tests.application.web.clients import Client
from tests.application.web.servers import app_with, running

if TYPE_CHECKING:
    from pathlib import Path


async def hello() -> str:
    return "hello"


@pytest.mark.parametrize(
    "text", ["127.0.0.1:8000", "localhost:0", "[::1]:80", "unix:/run/pie.sock"]
)
def test_an_address_is_read_and_shown_alike(text: str) -> None:
    assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "8000", ":8000", "x:", "x:65536", "x:-1", "::1:80", "unix:", "http://x:80"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        parse_address(text)


async def test_several_addresses_are_served_at_once(tmp_path: Path) -> None:
    path = tmp_path / "pie.sock"
    addresses = ("127.0.0.1:0", "localhost:0", f"unix:{path}")
    async with running(app_with(hello=hello), addresses=addresses) as server:
        assert server.urls[-1] == f"http://unix:{path}"
        assert all(url.startswith("http://") for url in server.urls)
        assert not any(url.endswith(":0") for url in server.urls)
        for url in server.urls[:-1]:
            host, _, port = url.removeprefix("http://").rpartition(":")
            stream = await trio.open_tcp_stream(host.strip("[]"), int(port))
            async with Client(stream, stream) as client:
                assert (await client.get("/hello")).body == b"hello"
        stream = await trio.open_unix_socket(path)
        async with Client(stream, stream) as client:
            for _ in range(3):
                assert (await client.get("/hello")).body == b"hello"


async def test_a_unix_socket_is_its_owners_and_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "pie.sock"
    async with open_listeners([UnixAddress(path)]):
        mode = path.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
    assert not path.exists()


async def test_a_stale_unix_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pie.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with open_listeners([UnixAddress(path)]) as listeners:
        assert len(listeners) == 1


async def test_a_unix_socket_that_was_replaced_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "pie.sock"
    async with open_listeners([UnixAddress(path)]):
        path.unlink()
        path.write_text("another's")
    assert path.read_text() == "another's"


async def test_an_address_in_use_is_said_so(tmp_path: Path) -> None:
    unix = UnixAddress(tmp_path / "pie.sock")
    async with open_listeners([TcpAddress("127.0.0.1", 0), unix]) as listeners:
        port = int(listeners[0].url.rpartition(":")[2])
        addresses: list[Address] = [TcpAddress("127.0.0.1", port), unix]
        for address in addresses:
            with pytest.raises(ConfigError, match="is a server running already"):
                async with open_listeners([address]):
                    pass


async def test_other_obstacles_are_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    cases: list[tuple[Address, str]] = [
        (TcpAddress("192.0.2.1", 0), "no address of this machine"),
        (TcpAddress("host.invalid", 0), "cannot listen on host.invalid:0"),
        (UnixAddress(file), "File exists"),
        (UnixAddress(tmp_path / "none" / "x"), "No such file"),
        (UnixAddress(tmp_path / ("x" * 200)), "too long"),
    ]
    for address, match in cases:
        with pytest.raises(ConfigError, match=match):
            async with open_listeners([address]):
                pass
    assert file.exists()


async def test_what_was_opened_before_an_obstacle_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "pie.sock"
    with pytest.raises(ConfigError):
        async with open_listeners([UnixAddress(path), TcpAddress("192.0.2.1", 0)]):
            pass
    assert not path.exists()
