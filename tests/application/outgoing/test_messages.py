from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.application.outgoing.messages import (
    FORBIDDEN,
    HttpLimits,
    HttpRequest,
    check_request,
)
from pie_trio.errors import BadArgumentError, LimitError


def check(**fields: object) -> list[tuple[str, str]]:
    request = HttpRequest(**{"method": "POST", "url": "http://a/", **fields})  # type: ignore[arg-type]
    return check_request(
        request, HttpLimits(max_request_bytes=10, max_header_bytes=100)
    )


def test_headers_are_sent_in_order_with_lower_case_names() -> None:
    headers = (("X-B", " 1\t"), ("x-a", ""), ("X-B", "2"), ("User-Agent", "me"))
    assert check(headers=headers) == [
        ("x-b", "1"),
        ("x-a", ""),
        ("x-b", "2"),
        ("user-agent", "me"),
    ]


def test_the_server_names_itself_where_the_inferlet_does_not() -> None:
    ((name, value),) = check()
    assert name == "user-agent"
    assert value.startswith("pie-trio/")


@pytest.mark.parametrize("name", sorted([*FORBIDDEN, "proxy-authorization"]))
def test_headers_of_the_connection_are_refused(name: str) -> None:
    for text in (name, name.title(), name.upper()):
        with pytest.raises(BadArgumentError, match="set by the server"):
            check(headers=((text, "x"),))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("x", f"a{c}b") for c in "\r\n\0\x7f\x85\N{EURO SIGN}"),
        *((name, "a") for name in ("", "x y", "x:", ":x", "x\r\ny", "\N{KELVIN SIGN}")),
        ("x\n", "a"),
        ("x", "a\n"),
    ],
)
def test_nothing_can_be_smuggled_into_a_header(name: str, value: str) -> None:
    with pytest.raises(BadArgumentError, match="header"):
        check(headers=((name, value),))


@given(st.text(), st.text())
def test_what_passes_is_one_line(name: str, value: str) -> None:
    try:
        headers = check(headers=((name, value),))
    except (BadArgumentError, LimitError):
        return
    text = "".join(f"{name}: {value}" for name, value in headers)
    assert text.isascii()
    assert text.replace("\t", " ").isprintable()


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "get"},
        {"method": "CONNECT"},
        {"method": "GET / HTTP/1.1\r\nx:"},
        {"method": "GET", "body": b"x"},
        {"method": "HEAD", "body": b"x"},
        {"timeout_seconds": 0.0},
        {"timeout_seconds": -1.0},
        {"timeout_seconds": math.nan},
    ],
)
def test_a_request_that_makes_no_sense_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(BadArgumentError):
        check(**fields)


def test_a_request_has_limits() -> None:
    check(body=bytes(10))
    with pytest.raises(LimitError, match="11 bytes"):
        check(body=bytes(11))
    with pytest.raises(LimitError, match="105 bytes"):
        check(headers=(("x", "y" * 100),))
