from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.application.outgoing.urls import join_url, parse_host, parse_url
from pie_trio.errors import BadArgumentError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://a", "http://a/"),
        ("HTTPS://A.Example.:443/x#y", "https://a.example/x"),
        ("http://a:8080?q=1", "http://a:8080/?q=1"),
        ("http://a/b c/\N{EURO SIGN}%20", "http://a/b%20c/%E2%82%AC%20"),
        ("http://[::0001]:80/", "http://[::1]/"),
        ("http://127.0.0.1:443/", "http://127.0.0.1:443/"),
        ("http://my_host.x/a@b:c", "http://my_host.x/a@b:c"),
    ],
)
def test_a_url_is_read_into_one_form(text: str, expected: str) -> None:
    assert str(parse_url(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "a", "/a", "//a", "http:a", "http:/a", "http://", "http:///a", "ftp://a"),
        *("file:///etc/passwd", " http://a", "http://a b/", "http://a\r\nx: y/"),
        *(
            "http://a/\r\nx",
            "http://a/\0",
            "http://a\\@b/",
            "http://a/\\",
            "http://u@a/",
        ),
        *(
            "http://u:p@a/",
            "http://a:b/",
            "http://a:0/",
            "http://a:65536/",
            "http://a:/",
        ),
        *("http://[::1/", "http://[::1]x/", "http://[fe80::1%25eth0]/", "http://::1/"),
        *(
            "http://0x7f.1/",
            "http://2130706433/",
            "http://127.1/",
            "http://0177.0.0.1/",
        ),
        *("http://1.2.3.4.5/", "http://a.0x7f/", "http://.a/", "http://a..b/"),
        *(
            "http://-a/",
            "http://a-/",
            "http://b\N{LATIN SMALL LETTER U WITH DIAERESIS}/",
        ),
        *("http://\N{FULLWIDTH DIGIT ONE}27.0.0.1/", "http://a%2eb/", "http://[v1.a]/"),
        *(
            "http://a/\ud800",
            "http://a/\x85",
            f"http://{'a' * 64}/",
            "http://a/" + "b" * 9000,
        ),
    ],
)
def test_what_is_not_written_strictly_is_refused(text: str) -> None:
    with pytest.raises(BadArgumentError):
        parse_url(text)


@given(st.text(st.sampled_from("htp:/@[]\\#?.0x17ab%\t\n \N{FULLWIDTH FULL STOP}")))
def test_a_url_that_is_read_means_the_same_to_another_reader(text: str) -> None:
    try:
        url = parse_url(f"http://{text}")
    except BadArgumentError:
        return
    again = urlsplit(str(url))
    assert again.hostname == url.host
    assert (again.port or 80) == url.port
    assert again.username is None
    assert parse_url(str(url)) == url


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("/x", "http://a:1/x"),
        ("x", "http://a:1/b/x"),
        ("//b/x", "http://b/x"),
        ("https://c", "https://c/"),
        ("?q", "http://a:1/b/c?q"),
    ],
)
def test_a_reference_is_joined(reference: str, expected: str) -> None:
    assert str(join_url(parse_url("http://a:1/b/c"), reference)) == expected


@pytest.mark.parametrize("reference", ["file:///x", "http://[", "//u@b/", "\\\\b"])
def test_a_reference_is_read_as_strictly(reference: str) -> None:
    with pytest.raises(BadArgumentError):
        join_url(parse_url("http://a/"), reference)


@given(st.ip_addresses())
def test_an_address_has_one_form(address: object) -> None:
    text = f"[{address}]" if ":" in str(address) else str(address)
    assert parse_host(text.upper()) == str(address)
