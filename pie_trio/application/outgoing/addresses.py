"""Which IP addresses are not on the public internet.

The tables are IANA's registries of special-purpose addresses (RFC 6890 and its updates), and not
``ipaddress.is_global``, whose answers differ between the releases of Python that we support.
"""

from __future__ import annotations

from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
)
from typing import Final, Literal

__all__ = ["AddressKind", "IPAddress", "address_kind", "parse_address"]

IPAddress = IPv4Address | IPv6Address

AddressKind = Literal[
    "public",
    "loopback",
    "private",
    "link-local",
    "multicast",
    "unspecified",
    "reserved",
    "tunnel",
]

_Table = tuple[tuple[IPv4Network | IPv6Network, AddressKind], ...]

_IPV4: Final[dict[str, AddressKind]] = {
    "0.0.0.0/8": "unspecified",  # 0.0.0.0 reaches this machine
    "10.0.0.0/8": "private",
    "100.64.0.0/10": "private",  # a provider's, or a VPN's
    "127.0.0.0/8": "loopback",
    "169.254.0.0/16": "link-local",  # the metadata of clouds
    "172.16.0.0/12": "private",
    "192.0.0.0/24": "reserved",
    "192.0.2.0/24": "reserved",  # documentation
    "192.88.99.0/24": "tunnel",  # relays of 6to4
    "192.168.0.0/16": "private",
    "198.18.0.0/15": "reserved",  # benchmarks
    "198.51.100.0/24": "reserved",  # documentation
    "203.0.113.0/24": "reserved",  # documentation
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved",  # with the broadcast address
}

# Beyond 2000::/3 nothing is public; the first lines only give the better word.
_IPV6: Final[dict[str, AddressKind]] = {
    "::/128": "unspecified",
    "::1/128": "loopback",
    "fc00::/7": "private",
    "fe80::/10": "link-local",
    "fec0::/10": "private",  # site-local, which some networks still route
    "ff00::/8": "multicast",
    "2001::/32": "tunnel",  # Teredo
    "2001::/23": "reserved",  # protocols
    "2001:db8::/32": "reserved",  # documentation
    "2002::/16": "tunnel",  # 6to4
    "3fff::/20": "reserved",  # documentation
}

_IPV4_TABLE: Final[_Table] = tuple((IPv4Network(n), kind) for n, kind in _IPV4.items())
_IPV6_TABLE: Final[_Table] = tuple((IPv6Network(n), kind) for n, kind in _IPV6.items())
_IPV6_PUBLIC: Final = IPv6Network("2000::/3")
_NAT64: Final = IPv6Network("64:ff9b::/96")
_ISATAP: Final = (0x0000_5EFE, 0x0200_5EFE)


def parse_address(text: str) -> IPAddress:
    """Return an address as a resolver gives it; an IPv4 address in IPv6 becomes the former.

    Raises:
        ValueError: It is no address.
    """
    address = ip_address(text)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def address_kind(address: IPAddress) -> AddressKind:
    """Say what kind of address it is.

    A NAT64 address is what the IPv4 address in it is: networks without IPv4 reach the public
    internet so. The other forms that carry an IPv4 address (6to4, Teredo, ISATAP) are out of
    use: they are ``tunnel``, whatever they carry.
    """
    if isinstance(address, IPv4Address):
        return _find(address, _IPV4_TABLE)
    if address.ipv4_mapped is not None:
        return address_kind(address.ipv4_mapped)
    if address in _NAT64:
        return address_kind(IPv4Address(int(address) & 0xFFFF_FFFF))
    if (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP:
        return "tunnel"
    kind = _find(address, _IPV6_TABLE)
    return "reserved" if kind == "public" and address not in _IPV6_PUBLIC else kind


def _find(
    address: IPAddress,
    table: _Table,
) -> AddressKind:
    for network, kind in table:
        if address in network:
            return kind
    return "public"
