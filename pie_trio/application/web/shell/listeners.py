"""Where a server listens: TCP and unix sockets, with or without TLS."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Generator, Sequence

__all__ = [
    "Address",
    "Listener",
    "TcpAddress",
    "UnixAddress",
    "open_listeners",
    "parse_address",
]

BACKLOG = 1024
UNIX_SOCKET_MODE = 0o600

_TCP = re.compile(
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.%]+)\]|(?P<host>[^\s:\[\]/]+)):(?P<port>\d+)"
)

# A client whose machine vanished sends no end: the system asks after 30 seconds of silence,
# and gives up after 60 without an acknowledgement.
_OPTIONS = (
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 30),
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 10),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
    (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 60_000),
)


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host, or one of its addresses, and a port; port 0 for one that is free."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{_bracketed(self.host)}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A path. Only its owner may connect, since a unix socket has no other guard."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that listens. Made by :func:`open_listeners`.

    Attributes:
        socket: Bound, and listening.
        url: ``http://127.0.0.1:40711``, with the port that it got; ``http://unix:/path``.
        ssl_context: None without TLS.
    """

    socket: trio.SocketListener
    url: str
    ssl_context: ssl.SSLContext | None = None


def parse_address(text: str) -> Address:
    """Return what ``HOST:PORT``, ``[IPV6]:PORT`` or ``unix:PATH`` means.

    Raises:
        ConfigError: It is none of these.
    """
    if text.startswith("unix:") and len(text) > len("unix:"):
        return UnixAddress(Path(text.removeprefix("unix:")))
    match = _TCP.fullmatch(text)
    if match is None or int(match["port"]) > 65535:
        raise ConfigError(
            f"cannot listen on {text!r}: expected HOST:PORT, [IPV6]:PORT or unix:PATH, "
            "for example 127.0.0.1:8000"
        )
    return TcpAddress(match["ipv6"] or match["host"], int(match["port"]))


@asynccontextmanager
async def open_listeners(
    addresses: Sequence[Address], ssl_context: ssl.SSLContext | None = None
) -> AsyncGenerator[list[Listener]]:
    """Listen for as long as the block is open. A name may have several addresses.

    Args:
        addresses: Where.
        ssl_context: Of TLS on TCP; a unix socket needs none.

    Raises:
        ConfigError: An address is in use, not of this machine, or not allowed.
    """
    async with AsyncExitStack() as stack:
        listeners = list[Listener]()
        for address in addresses:
            if isinstance(address, UnixAddress):
                sock = stack.enter_context(_open_unix_socket(address))
                listeners.append(_listen(sock, f"http://{address}"))
            else:
                scheme = "http" if ssl_context is None else "https"
                for sock in await _bind_tcp(address, stack):
                    host, port = sock.getsockname()[:2]
                    url = f"{scheme}://{_bracketed(host)}:{port}"
                    listeners.append(_listen(sock, url, ssl_context))
        yield listeners


def _listen(
    sock: socket.socket, url: str, ssl_context: ssl.SSLContext | None = None
) -> Listener:
    sock.listen(BACKLOG)
    trio_socket = trio.socket.from_stdlib_socket(sock)
    return Listener(trio.SocketListener(trio_socket), url, ssl_context)


async def _bind_tcp(address: TcpAddress, stack: AsyncExitStack) -> list[socket.socket]:
    try:
        found = await trio.socket.getaddrinfo(
            address.host,
            address.port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )
        sockets = list[socket.socket]()
        for family, kind, number, _, place in found:
            try:
                sock = socket.socket(family, kind, number)
            except OSError as error:
                if error.errno == errno.EAFNOSUPPORT:  # a name with an address of IPv6
                    continue
                raise
            stack.enter_context(sock)
            _set_options(sock)
            sock.bind(place)
            sockets.append(sock)
    except OSError as error:
        raise _cannot_listen(address, error) from error
    return sockets


def _set_options(sock: socket.socket) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    for level, name, value in _OPTIONS:
        if (option := getattr(socket, name, None)) is not None:
            sock.setsockopt(level, option, value)


@contextmanager
def _open_unix_socket(address: UnixAddress) -> Generator[socket.socket]:
    """Bind a unix socket, in place of one that nobody listens on, and remove it after."""
    path = address.path
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            _remove_stale(path)
            # Made with its mode, not changed to it: nobody may connect in between.
            before = os.umask(0o777 & ~UNIX_SOCKET_MODE)
            try:
                sock.bind(str(path))
            finally:
                os.umask(before)
            made = path.stat()
        except OSError as error:
            raise _cannot_listen(address, error) from error
        sock.setblocking(False)
        try:
            yield sock
        finally:
            with suppress(OSError):
                if path.stat().st_ino == made.st_ino:
                    path.unlink()


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _cannot_listen(address: Address, error: OSError) -> ConfigError:
    reason = error.strerror or str(error)
    hint = {
        errno.EADDRINUSE: ": is a server running already?",
        errno.EADDRNOTAVAIL: ": it is no address of this machine",
        errno.EACCES: ": ports below 1024 need rights, and a path a directory of yours",
    }.get(error.errno or 0, "")
    return ConfigError(f"cannot listen on {address}: {reason}{hint}")
