"""Reads the head of a request, strictly: what two parsers could read differently is refused."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from pie_trio.application.web.problems import RefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pie_trio.application.web.shell.config import ShellConfig

__all__ = ["RequestHead", "check_partial_head", "read_head"]

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rb"([A-Z][A-Z-]{0,31}) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
_HEADER = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
_LONE_LF = re.compile(rb"(?<!\r)\n")
_LENGTH = re.compile(rb"[0-9]{1,15}")
_HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+;=\[\]:-]*")
_FIRST_BYTES = re.compile(rb"[A-Za-z]")
_TLS_HANDSHAKE = 0x16

# These decide where a request ends, or whom it is for: a second one is an attack or a bug.
_ONCE = frozenset(
    (
        *(b"content-length", b"transfer-encoding", b"host", b"expect", b"upgrade"),
        *(b"sec-websocket-key", b"sec-websocket-version"),
    )
)


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What the shell must know of a request.

    Attributes:
        method: In upper case, as it came.
        target: As it came; printable ASCII.
        content_length: Of the body; 0 without one, None if it comes in chunks.
        is_websocket: It asks to become a WebSocket, and may.
    """

    method: str
    target: str
    content_length: int | None
    is_websocket: bool


def check_partial_head(data: bytes | bytearray) -> None:
    """Refuse the beginning of a head that cannot become one.

    Raises:
        RefusedError: 400.
    """
    if data and not _FIRST_BYTES.match(data):
        hint = " (was it TLS? this port has none)" if data[0] == _TLS_HANDSHAKE else ""
        _bad(f"expected an HTTP request{hint}")
    if _LONE_LF.search(data):
        _bad("a line ends without a carriage return")


def read_head(data: bytes, config: ShellConfig) -> RequestHead:
    """Return what a head says.

    Args:
        data: Up to and with the empty line.
        config: Limits of headers and body.

    Raises:
        RefusedError: 4xx or 5xx: it is malformed, ambiguous, too large, or asks for what the
            server does not do.
    """
    first, *lines = data[:-4].split(b"\r\n")
    method, target, version = _read_request_line(first)
    if len(lines) > config.max_headers:
        raise RefusedError(
            431,
            f"the request has {len(lines)} headers, at most {config.max_headers} are allowed",
        )
    headers = _read_headers(lines)
    _check_host(headers, version)
    if headers.get(b"expect", b"100-continue").lower() != b"100-continue":
        raise RefusedError(417, "the only expectation that can be met is 100-continue")
    length = _read_length(headers, version)
    if length is not None and length > config.max_body_bytes:
        raise RefusedError(
            413,
            f"the body has {length} bytes, at most {config.max_body_bytes} are allowed",
        )
    is_websocket = _asks_for_websocket(headers, method, version)
    if is_websocket:
        _check_handshake(headers, length)
    return RequestHead(method, target, length, is_websocket)


def _bad(message: str) -> NoReturn:
    raise RefusedError(400, message)


def _read_request_line(line: bytes) -> tuple[str, str, tuple[int, int]]:
    if (match := _REQUEST_LINE.fullmatch(line)) is None:
        _bad("the request line is not METHOD SP TARGET SP HTTP/1.1")
    method, target = match[1].decode(), match[2].decode()
    version = (int(match[3]), int(match[4]))
    if version not in ((1, 0), (1, 1)):
        raise RefusedError(
            505,
            f"this server speaks HTTP/1.1 and WebSocket, not HTTP/{version[0]}."
            f"{version[1]}: a proxy in front of it can speak others",
        )
    if method == "CONNECT":
        raise RefusedError(501, "this server is no proxy: CONNECT is not supported")
    is_origin = target.startswith(("/", "http://", "https://"))
    if not is_origin and (method, target) != ("OPTIONS", "*"):
        _bad("the request's target must begin with a slash")
    return method, target, version


def _read_headers(lines: list[bytes]) -> Mapping[bytes, bytes]:
    """Return the headers by name in lower case; repeated ones are joined by commas."""
    headers = dict[bytes, bytes]()
    for line in lines:
        if (match := _HEADER.fullmatch(line)) is None:
            if line[:1] in (b" ", b"\t"):
                _bad("a header is folded over several lines")
            _bad("a header is not NAME: VALUE")
        name, value = match[1].lower(), match[2].rstrip(b" \t")
        if name in headers:
            if name in _ONCE:
                _bad(f"the header {name.decode()} occurs twice")
            value = headers[name] + b"," + value
        headers[name] = value
    return headers


def _check_host(headers: Mapping[bytes, bytes], version: tuple[int, int]) -> None:
    host = headers.get(b"host")
    if host is None and version == (1, 1):
        _bad("the header host is missing")
    if host is not None and not _HOST.fullmatch(host):
        _bad("the header host is no host")


def _read_length(
    headers: Mapping[bytes, bytes], version: tuple[int, int]
) -> int | None:
    """Return the length of the body, None if it comes in chunks."""
    length, encoding = (
        headers.get(b"content-length"),
        headers.get(b"transfer-encoding"),
    )
    if encoding is None:
        if length is None:
            return 0
        if not _LENGTH.fullmatch(length):
            _bad("the header content-length is no number of bytes")
        return int(length)
    if length is not None:
        _bad("both content-length and transfer-encoding say where the body ends")
    if version == (1, 0):
        _bad("HTTP/1.0 has no transfer-encoding")
    if encoding.lower() != b"chunked":
        raise RefusedError(501, "the only transfer-encoding that is known is chunked")
    return None


def _asks_for_websocket(
    headers: Mapping[bytes, bytes], method: str, version: tuple[int, int]
) -> bool:
    """Say whether it is an upgrade to WebSocket; any other upgrade is ignored, as it may be."""
    tokens = headers.get(b"connection", b"").lower().split(b",")
    return (
        headers.get(b"upgrade", b"").lower() == b"websocket"
        and b"upgrade" in (token.strip() for token in tokens)
        and method == "GET"
        and version == (1, 1)
    )


def _check_handshake(headers: Mapping[bytes, bytes], length: int | None) -> None:
    if length != 0:
        _bad("a WebSocket's handshake has no body")
    for name, value in headers.items():
        if name.startswith(b"sec-websocket-") and not value.isascii():
            _bad(f"the header {name.decode()} is not ASCII")
    if headers.get(b"sec-websocket-version") != b"13":
        raise RefusedError(
            426,
            "the only version of WebSocket that is known is 13",
            ((b"sec-websocket-version", b"13"),),
        )
    try:
        key = base64.b64decode(headers.get(b"sec-websocket-key", b""), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != 16:
        _bad("the header sec-websocket-key is not 16 bytes in base64")
