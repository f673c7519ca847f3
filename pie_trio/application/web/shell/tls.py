"""TLS: the operator's certificate, and a transport that is closed without losing the end."""

from __future__ import annotations

import os
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LingeringStream", "TlsFiles", "load_tls"]

READ_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What a server proves its name with.

    Attributes:
        certificate: PEM, the server's own first, then those up to the root's.
        key: PEM, not encrypted.
    """

    certificate: Path
    key: Path


def load_tls(files: TlsFiles) -> ssl.SSLContext:
    """Return what connections are encrypted with: TLS 1.2 or newer, HTTP/1.1 only.

    Raises:
        ConfigError: A file cannot be read, or the two do not belong together.
    """
    for path in (files.certificate, files.key):
        try:
            with path.open("rb"):
                pass
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise ConfigError(f"cannot read the TLS file {path}: {reason}") from error
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
    except _EncryptedKeyError as error:
        raise ConfigError(
            f"the key in {files.key} is encrypted: store it without a password, readable by "
            "the server's user alone"
        ) from error
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise ConfigError(
            f"{files.certificate} and {files.key} are no certificate and its key in PEM "
            f"({reason.lower().replace('_', ' ')}): expected the chain in the first and "
            "the private key in the second"
        ) from error
    return context


class _EncryptedKeyError(Exception):
    """Instead of a question on the terminal."""


def _no_password() -> str:
    raise _EncryptedKeyError


class LingeringStream(trio.abc.Stream):
    """A TCP stream under TLS whose end is read before its owner closes it.

    Closing while there are bytes that nobody has read would tell the client's system to drop
    what it was sent last.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of it."""
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until some can be sent."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Return what has come; nothing at the end."""
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        """End the sending side and read up to the end; the socket stays open."""
        with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            self._stream.socket.shutdown(socket.SHUT_WR)
            while await self._stream.receive_some(READ_BYTES):
                pass
