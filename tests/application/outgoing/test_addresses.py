from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.application.outgoing.addresses import address_kind, parse_address


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *(
            (a, "public")
            for a in ("1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.0")
        ),
        *((a, "public") for a in ("172.15.255.255", "172.32.0.0", "223.255.255.255")),
        *(
            (a, "public")
            for a in ("2606:4700::1111", "2001:4860:4860::8888", "2a00::1")
        ),
        *((a, "loopback") for a in ("127.0.0.1", "127.255.255.255", "::1")),
        *((a, "private") for a in ("10.1.2.3", "172.16.0.1", "192.168.1.1")),
        *((a, "private") for a in ("100.64.0.1", "fc00::1", "fdff::1", "fec0::1")),
        *((a, "link-local") for a in ("169.254.169.254", "fe80::1", "febf::1")),
        *((a, "multicast") for a in ("224.0.0.1", "239.255.255.255", "ff02::1")),
        *((a, "unspecified") for a in ("0.0.0.0", "0.1.2.3", "::")),
        *((a, "reserved") for a in ("240.0.0.1", "255.255.255.255", "192.0.0.1")),
        *((a, "reserved") for a in ("192.0.2.1", "198.18.0.1", "198.51.100.1")),
        *((a, "reserved") for a in ("203.0.113.1", "2001:db8::1", "3fff::1", "100::1")),
        *((a, "reserved") for a in ("2001:10::1", "5f00::1", "4000::1", "::127.0.0.1")),
        # An IPv4 address in an IPv6 address: mapped, NAT64, its local form, the tunnels.
        *((a, "loopback") for a in ("::ffff:127.0.0.1", "64:ff9b::127.0.0.1")),
        *((a, "private") for a in ("::ffff:10.0.0.1", "64:ff9b::192.168.0.1")),
        *((a, "link-local") for a in ("::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe")),
        *((a, "unspecified") for a in ("::ffff:0.0.0.0", "64:ff9b::")),
        *((a, "public") for a in ("::ffff:8.8.8.8", "64:ff9b::8.8.8.8")),
        ("64:ff9b:1::127.0.0.1", "reserved"),
        *((a, "tunnel") for a in ("2002:7f00:1::1", "2002:808:808::1", "192.88.99.1")),
        *((a, "tunnel") for a in ("2001::1", "2001:0:7f00:1::", "2001::f5ff:fffe")),
        *((a, "tunnel") for a in ("2a00::5efe:10.0.0.1", "2a00::200:5efe:10.0.0.1")),
    ],
)
def test_an_address_is_of_its_kind(text: str, kind: str) -> None:
    assert address_kind(ip_address(text)) == kind
    assert address_kind(parse_address(text)) == kind


@given(st.ip_addresses(v=4))
def test_the_forms_of_an_ipv4_address_are_no_way_around_it(
    address: IPv4Address,
) -> None:
    kind, number = address_kind(address), int(address)
    assert address_kind(IPv6Address(0xFFFF << 32 | number)) == kind
    assert address_kind(IPv6Address(0x64_FF9B << 96 | number)) == kind
    assert parse_address(f"::ffff:{address}") == address
    for carrier in (0x2002 << 112 | number << 80, 0x2001 << 112 | number, number):
        assert address_kind(IPv6Address(carrier)) != "public"


@given(st.ip_addresses())
def test_what_python_knows_as_special_is_not_public(
    address: IPv4Address | IPv6Address,
) -> None:
    if address.is_loopback or address.is_link_local or address.is_multicast:
        assert address_kind(address) != "public"
