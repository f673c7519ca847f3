"""What a client may use of the server's connections; the home of these defaults."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ShellConfig"]


@dataclass(frozen=True, slots=True)
class ShellConfig:
    """Limits and times of connections. Sizes are in bytes.

    Attributes:
        max_connections: At once; one more gets a 503.
        max_connections_per_address: At once from one IPv4 address or one /64 of IPv6; one more
            gets a 429. Raise it behind a proxy. Unix sockets have no address.
        max_head_bytes: Of a request line with its headers.
        max_headers: Of a request.
        max_body_bytes: Of a request's body. An application may allow less.
        max_message_bytes: Of a WebSocket message.
        handshake_seconds: For TLS.
        header_seconds: From the first byte of a head to its last; and from a new connection
            to its first byte.
        keep_alive_seconds: Between an answer and the next request.
        body_seconds: Between two reads of a body that is awaited.
        stall_seconds: For a client to take the next 16 KiB of what it is sent.
        ping_seconds: Between pings of a WebSocket; a client that stays silent over a whole
            interval is gone.
        drain_seconds: For requests to end when the server stops.
        close_seconds: For a connection to be closed in order.
    """

    max_connections: int = 1024
    max_connections_per_address: int = 256
    max_head_bytes: int = 16 << 10
    max_headers: int = 100
    max_body_bytes: int = 64 << 20
    max_message_bytes: int = 1 << 20
    handshake_seconds: float = 10.0
    header_seconds: float = 10.0
    keep_alive_seconds: float = 30.0
    body_seconds: float = 30.0
    stall_seconds: float = 30.0
    ping_seconds: float = 20.0
    drain_seconds: float = 10.0
    close_seconds: float = 2.0
