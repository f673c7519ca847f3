"""Which hosts an inferlet may reach, and which addresses these may lead to."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Literal

import trio

from pie_trio.application.outgoing.addresses import address_kind, parse_address
from pie_trio.application.outgoing.urls import DEFAULT_PORTS, Scheme, parse_host
from pie_trio.errors import (
    BadArgumentError,
    ConfigError,
    HttpDeniedError,
    HttpFailedError,
)

if TYPE_CHECKING:
    from pie_trio.application.outgoing.addresses import AddressKind, IPAddress
    from pie_trio.application.outgoing.urls import Url

__all__ = ["Grant", "HttpPolicy", "Lookup", "look_up", "parse_grant"]

Lookup = Callable[[str, int], Awaitable[Sequence[str]]]
"""Returns the addresses of a host; raises OSError where it has none."""

FLAG = "--allow-http"

# What may stand before :// in a grant, and what it means: the scheme, and whether it is local.
_PREFIXES: dict[str, tuple[Scheme | None, bool]] = {
    "": (None, False),
    "http": ("http", False),
    "https": ("https", False),
    "local": (None, True),
    "local+http": ("http", True),
    "local+https": ("https", True),
}


@dataclass(frozen=True, slots=True)
class Grant:
    """Leave to reach one host, or the hosts below one name.

    Attributes:
        host: A name, an address, ``*.`` with a name, or ``*`` for every public host.
        port: None for the scheme's own.
        scheme: None for both.
        is_local: Whether the host may lead to loopback and private addresses.
    """

    host: str
    port: int | Literal["*"] | None = None
    scheme: Scheme | None = None
    is_local: bool = False

    def matches(self, url: Url) -> bool:
        """Say whether the grant is for a URL, whatever its address."""
        port = DEFAULT_PORTS[url.scheme] if self.port is None else self.port
        return (
            self.scheme in (None, url.scheme)
            and port in ("*", url.port)
            and self._matches_host(url.host)
        )

    def allows(self, address: IPAddress, kind: AddressKind) -> bool:
        """Say whether a host of the grant may lead to an address.

        An address that is granted literally may be of any kind. Link-local addresses need
        that: where clouds keep the credentials of the machine, no name should lead.
        """
        if kind == "public" or _literal(self.host) == address:
            return True
        if self.is_local:
            return kind in ("loopback", "private")
        return _is_localhost(self.host) and kind == "loopback"

    def _matches_host(self, host: str) -> bool:
        if self.host == "*":
            return True
        if self.host.startswith("*."):
            return _literal(host) is None and host.endswith(self.host[1:])
        return host == self.host


class HttpPolicy:
    """The grants of one inferlet; without one, nothing may be reached.

    Args:
        grants: See :func:`parse_grant`.
        lookup: How to find the addresses of a host.
    """

    def __init__(
        self, grants: Sequence[Grant] = (), *, lookup: Lookup | None = None
    ) -> None:
        self.grants = tuple(grants)
        self._lookup = look_up if lookup is None else lookup

    def check(self, url: Url) -> list[Grant]:
        """Return the grants for a URL.

        Raises:
            HttpDeniedError: There is none.
        """
        if found := [grant for grant in self.grants if grant.matches(url)]:
            return found
        raise HttpDeniedError(
            f"{url.scheme}://{url.authority} is not granted: start with "
            f"{FLAG} {url.authority}",
            grant=url.authority,
        )

    async def resolve(self, url: Url) -> list[IPAddress]:
        """Look the host up, once, and return its addresses, all of them checked.

        Whoever connects must use these: a second lookup may have another answer.

        Raises:
            HttpDeniedError: The URL is not granted, or any address of its host is not.
            HttpFailedError: The host has no address.
        """
        grants = self.check(url)
        if (literal := _literal(url.host)) is not None:
            addresses = [literal]
        else:
            addresses = await self._find(url)
        for address in addresses:
            kind = address_kind(address)
            if not any(grant.allows(address, kind) for grant in grants):
                raise _refusal(url, kind)
        return addresses

    async def _find(self, url: Url) -> list[IPAddress]:
        try:
            found = await self._lookup(url.host, url.port)
            addresses = [parse_address(text) for text in found]
        except (OSError, ValueError) as error:  # ValueError: no name, or no address
            reason = error.strerror if isinstance(error, OSError) else None
            raise HttpFailedError(
                f"the host {url.host} was not found: {reason or error}"
            ) from error
        if not addresses:
            raise HttpFailedError(f"the host {url.host} has no address")
        return list(dict.fromkeys(addresses))


def parse_grant(text: str) -> Grant:
    """Read a grant as the operator writes it.

    ``example.com``, ``example.com:8443``, ``example.com:*`` (any port), ``*.example.com``
    (hosts below it, not itself), ``*`` (every public host), ``https://example.com`` (one
    scheme), ``127.0.0.1:8080``, ``[::1]:8080``. What leads to addresses that are not public
    is granted by its address, as ``localhost``, or with ``local://``, ``local+http://`` or
    ``local+https://`` before it.

    Raises:
        ConfigError: It is none of these.
    """
    prefix, has_prefix, rest = text.rpartition("://")
    if (prefix, has_prefix) == ("", "://") or prefix not in _PREFIXES:
        raise _bad_grant(text, "its scheme is not known")
    scheme, is_local = _PREFIXES[prefix]
    host_text, port = _split_port(rest, text)
    if host_text == "*":
        if is_local:
            raise _bad_grant(text, "it would open every host of this network")
        return Grant("*", port, scheme)
    try:
        below = "*." if host_text.startswith("*.") else ""
        host = below + parse_host(host_text.removeprefix("*."))
    except BadArgumentError as error:
        raise _bad_grant(text, str(error)) from error
    if below and _literal(host.removeprefix(below)) is not None:
        raise _bad_grant(text, "nothing is below an address")
    return Grant(host, port, scheme, is_local)


async def look_up(host: str, port: int) -> list[str]:
    """Return the addresses of a host as the system's resolver gives them.

    Raises:
        OSError: It has none.
    """
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(info[4][0]) for info in found]


def _split_port(rest: str, text: str) -> tuple[str, int | Literal["*"] | None]:
    host, colon, port_text = rest.rpartition(":")
    if not colon or rest.endswith("]"):
        return rest, None
    if port_text == "*":
        return host, "*"
    if port_text.isascii() and port_text.isdigit() and 0 < int(port_text) < 1 << 16:
        return host, int(port_text)
    raise _bad_grant(text, "its port is no number from 1 to 65535, nor *")


def _bad_grant(text: str, reason: str) -> ConfigError:
    return ConfigError(
        f"{FLAG} {text} cannot be used: {reason}. Expected HOST, HOST:PORT, *.HOST or a "
        "scheme before these, for example https://api.example.com or localhost:8080"
    )


def _refusal(url: Url, kind: AddressKind) -> HttpDeniedError:
    """Return the error for an address; it keeps the address itself from the inferlet."""
    article = "an" if kind[0] in "aeiou" else "a"
    what = f"{url.authority} leads to {article} {kind} address, which is not granted"
    if _literal(url.host) is not None:
        grant = url.authority
    elif kind in ("loopback", "private"):
        grant = f"local://{url.authority}"
    else:
        return HttpDeniedError(f"{what}: only the address itself could be")
    return HttpDeniedError(f"{what}: start with {FLAG} {grant}", grant=grant)


def _literal(host: str) -> IPAddress | None:
    """Return the address that a host in its checked form is, None for a name."""
    if ":" in host:
        address = IPv6Address(host)
        return address if address.ipv4_mapped is None else address.ipv4_mapped
    if host.rpartition(".")[2].isdigit():  # checked when the URL or the grant was read
        return ip_address(host)
    return None


def _is_localhost(host: str) -> bool:
    return host == "localhost" or host.endswith(".localhost")
