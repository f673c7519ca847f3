"""URLs of outgoing requests, read strictly: whoever checks one and whoever uses it must agree.

There is one reader, and what it returns is all that the rest of the package uses. What other
readers are known to see differently is refused: backslashes, user names, control characters,
and hosts that are numbers in an unusual form, such as ``0x7f.1``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final, Literal
from urllib.parse import quote, urljoin

from pie_trio.errors import BadArgumentError

__all__ = ["DEFAULT_PORTS", "Scheme", "Url", "join_url", "parse_host", "parse_url"]

Scheme = Literal["http", "https"]

DEFAULT_PORTS: Final[dict[Scheme, int]] = {"http": 80, "https": 443}
MAX_URL_CHARS = 8192

_URL = re.compile(r"(https?)://([^/?#]*)([^#]*)(?:#.*)?", re.IGNORECASE)
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:]+)(?::([0-9]{1,5}))?", re.IGNORECASE)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


@dataclass(frozen=True, slots=True)
class Url:
    """Where a request goes.

    Attributes:
        scheme: ``http`` or ``https``.
        host: A name in lower case, or an address; IPv6 without brackets.
        port: Also where it is the scheme's own.
        target: Path and query, in printable ASCII.
    """

    scheme: Scheme
    host: str
    port: int
    target: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"

    @property
    def origin(self) -> tuple[Scheme, str, int]:
        """What credentials and connections belong to."""
        return self.scheme, self.host, self.port

    @property
    def authority(self) -> str:
        """The host, and the port where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (
            host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"
        )


def parse_url(text: str) -> Url:
    """Return the parts of an absolute URL; its fragment is dropped.

    Spaces and characters outside of ASCII in the path and the query are percent-encoded.

    Raises:
        BadArgumentError: It is none of ``http`` or ``https``, or not written strictly.
    """
    if len(text) > MAX_URL_CHARS:
        raise BadArgumentError(
            f"a URL has {len(text)} characters, at most {MAX_URL_CHARS} are allowed"
        )
    if "\\" in text or any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in text):
        raise BadArgumentError(
            f"{text!r} has a backslash or a control character: percent-encode it"
        )
    if not (found := _URL.fullmatch(text)):
        raise BadArgumentError(
            f"{text!r} is no URL for a request: expected http://HOST/... or https://HOST/..."
        )
    scheme: Scheme = "https" if found[1].lower() == "https" else "http"
    host, port = _parse_authority(found[2], text)
    target = _encode_target(found[3])
    return Url(scheme, host, DEFAULT_PORTS[scheme] if port is None else port, target)


def join_url(base: Url, reference: str) -> Url:
    """Return what a reference in an answer from ``base`` means, read as strictly.

    Raises:
        BadArgumentError: It is no URL for a request.
    """
    try:
        joined = urljoin(str(base), reference)
    except ValueError as error:
        raise BadArgumentError(f"{reference!r} is no URL: {error}") from error
    return parse_url(joined)


def parse_host(text: str) -> str:
    """Return a host in the one form that is compared: lower case, no dot at its end.

    Args:
        text: A name, an IPv4 address, or an IPv6 address in brackets.

    Raises:
        BadArgumentError: It is none of these.
    """
    if text.startswith("["):
        try:
            return str(IPv6Address(text.removeprefix("[").removesuffix("]")))
        except AddressValueError as error:
            raise BadArgumentError(f"{text!r} is no IPv6 address: {error}") from error
    if not text.isascii():
        raise BadArgumentError(
            f"the host {text!r} is not ASCII: write an international name as xn--..."
        )
    host = text.lower().removesuffix(".")
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(IPv4Address(host))
        except AddressValueError as error:
            raise BadArgumentError(
                f"the host {text!r} is no IPv4 address: expected four numbers from 0 to 255"
            ) from error
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise BadArgumentError(f"{text!r} is no name of a host")
    return host


def _parse_authority(authority: str, text: str) -> tuple[str, int | None]:
    if "@" in authority:
        raise BadArgumentError(
            "a URL with a user name or password is refused: send a header Authorization"
        )
    if not (found := _AUTHORITY.fullmatch(authority)):
        raise BadArgumentError(f"{text!r} has no host, or one that cannot be read")
    port = int(found[2]) if found[2] else None
    if port is not None and not 0 < port < 1 << 16:
        raise BadArgumentError(f"{text!r} has the port {port}: expected 1 to 65535")
    return parse_host(found[1]), port


def _encode_target(target: str) -> str:
    try:
        encoded = quote(target, safe=_PRINTABLE)
    except UnicodeEncodeError as error:
        raise BadArgumentError("a URL has half of a surrogate pair") from error
    return encoded if encoded.startswith("/") else f"/{encoded}"
