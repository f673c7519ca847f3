"""Serves an ASGI application over HTTP/1.1 and WebSocket: sockets, limits, deadlines, ends.

The protocols are Hypercorn's (and h11's, and wsproto's); everything that a hostile or a careless
client can do to a server is dealt with here. HTTP/2 and HTTP/3 are left to a proxy in front.
"""

from __future__ import annotations

from pie_trio.application.web.shell.config import ShellConfig
from pie_trio.application.web.shell.listeners import (
    Address,
    Listener,
    TcpAddress,
    UnixAddress,
    open_listeners,
    parse_address,
)
from pie_trio.application.web.shell.server import serve
from pie_trio.application.web.shell.tls import TlsFiles, load_tls

__all__ = [
    "Address",
    "Listener",
    "ShellConfig",
    "TcpAddress",
    "TlsFiles",
    "UnixAddress",
    "load_tls",
    "open_listeners",
    "parse_address",
    "serve",
]
