"""Who may connect: how many at once, in all and from one address. Plain data, no sockets."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

from pie_trio.application.web.problems import RefusedError

if TYPE_CHECKING:
    from pie_trio.application.web.shell.config import ShellConfig

__all__ = ["Admission", "peer_group"]

IPV6_GROUP_BITS = 64
SOON = ((b"retry-after", b"1"),)


def peer_group(host: str | None) -> str | None:
    """Return what is counted as one peer: an IPv4 address, or the /64 of an IPv6 address.

    One customer of a network gets a whole /64, so its addresses are no limit.
    """
    if host is None:
        return None
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        shift = 128 - IPV6_GROUP_BITS
        return f"{IPv6Address(int(address) >> shift << shift)}/{IPV6_GROUP_BITS}"
    assert isinstance(address, IPv4Address)
    return str(address)


class Admission:
    """Counts open connections."""

    def __init__(self, config: ShellConfig) -> None:
        self._config = config
        self._by_group = Counter[str]()
        self.num_open = 0

    def enter(self, group: str | None) -> None:
        """Count one more.

        Raises:
            RefusedError: 503 or 429: there are too many. It is not counted.
        """
        most, most_of_one = (
            self._config.max_connections,
            self._config.max_connections_per_address,
        )
        if self.num_open >= most:
            raise RefusedError(
                503,
                f"the server has {most} connections, which is all it takes",
                SOON,
            )
        if group is not None and self._by_group[group] >= most_of_one:
            raise RefusedError(
                429,
                f"your address has {most_of_one} connections, which is all it may have",
                SOON,
            )
        self.num_open += 1
        if group is not None:
            self._by_group[group] += 1

    def leave(self, group: str | None) -> None:
        """Count one less, after :meth:`enter`."""
        self.num_open -= 1
        if group is not None:
            self._by_group[group] -= 1
            if not self._by_group[group]:
                del self._by_group[group]
