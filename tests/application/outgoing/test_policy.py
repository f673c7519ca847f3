from __future__ import annotations

import pytest
import trio

from pie_trio.application.outgoing import Grant, HttpPolicy, parse_grant
from pie_trio.application.outgoing.urls import parse_url
from pie_trio.errors import ConfigError, HttpDeniedError, HttpFailedError
from tests.application.outgoing.servers import TIME_LIMIT_SECONDS, Names


@pytest.mark.parametrize(
    ("text", "grant"),
    [
        ("Example.com", Grant("example.com")),
        ("example.com:8443", Grant("example.com", 8443)),
        ("example.com:*", Grant("example.com", "*")),
        ("*.example.com", Grant("*.example.com")),
        ("*", Grant("*")),
        ("*:*", Grant("*", "*")),
        ("https://*", Grant("*", None, "https")),
        ("https://example.com:1", Grant("example.com", 1, "https")),
        ("local://tools.lan:80", Grant("tools.lan", 80, None, is_local=True)),
        ("local+http://*.lan", Grant("*.lan", None, "http", is_local=True)),
        ("127.0.0.1:8080", Grant("127.0.0.1", 8080)),
        ("[::1]", Grant("::1")),
        ("[::1]:8080", Grant("::1", 8080)),
    ],
)
def test_a_grant_is_read(text: str, grant: Grant) -> None:
    assert parse_grant(text) == grant


@pytest.mark.parametrize(
    "text",
    [
        *("", ":80", "a:b", "a:0", "a:65536", "a:", "ftp://a", "://a", "a/b", "u@a"),
        *(
            "local://*",
            "local+ftp://a",
            "localhttp://a",
            "*.",
            "*.1.2.3.4",
            "**",
            "a.*",
        ),
        *("127.1", "::1", "[::1", "http://", "a b"),
    ],
)
def test_what_is_no_grant_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="Expected HOST"):
        parse_grant(text)


@pytest.mark.parametrize(
    ("grant", "url", "is_granted"),
    [
        ("a.b", "http://a.b/", True),
        ("a.b", "https://A.B./", True),
        ("a.b", "https://a.b:8443/", False),
        ("a.b", "https://x.a.b/", False),
        ("a.b:8443", "https://a.b:8443/", True),
        ("a.b:8443", "https://a.b/", False),
        ("a.b:*", "http://a.b:1/", True),
        ("https://a.b", "http://a.b/", False),
        ("https://a.b", "http://a.b:443/", False),
        ("*.b", "http://a.b/", True),
        ("*.b", "http://x.a.b/", True),
        ("*.b", "http://b/", False),
        ("*.b", "http://ab/", False),
        ("*", "http://any.host/", True),
        ("*", "http://any.host:81/", False),
        ("127.0.0.1", "http://127.0.0.1/", True),
        ("127.0.0.1", "http://[::ffff:127.0.0.1]/", False),
        ("[::1]", "http://[0::1]/", True),
    ],
)
def test_a_grant_is_for_some_urls(grant: str, url: str, is_granted: bool) -> None:
    policy = HttpPolicy([parse_grant(grant)])
    if is_granted:
        assert len(policy.check(parse_url(url))) == 1
    else:
        with pytest.raises(HttpDeniedError, match="is not granted"):
            policy.check(parse_url(url))


def test_nothing_is_granted_by_default_and_the_error_names_the_grant() -> None:
    with pytest.raises(HttpDeniedError, match=r"--allow-http a\.b:8080$") as caught:
        HttpPolicy().check(parse_url("http://a.b:8080/x"))
    assert caught.value.grant == "a.b:8080"
    assert caught.value.code == "forbidden"


PUBLIC, LOOPBACK, PRIVATE, METADATA = (
    "8.8.8.8",
    "127.0.0.1",
    "10.0.0.1",
    "169.254.169.254",
)


@pytest.mark.parametrize(
    ("grant", "host", "addresses", "is_allowed"),
    [
        ("x.test", "x.test", [PUBLIC], True),
        ("x.test", "x.test", [LOOPBACK], False),
        ("x.test", "x.test", [PRIVATE], False),
        ("x.test", "x.test", [PUBLIC, PRIVATE], False),
        ("x.test", "x.test", ["::ffff:127.0.0.1"], False),
        ("x.test", "x.test", ["64:ff9b::10.0.0.1"], False),
        ("x.test", "x.test", ["2002:808:808::"], False),
        ("*", "x.test", [METADATA], False),
        ("*", "localhost", [LOOPBACK], False),
        ("*", LOOPBACK, [], False),
        ("*", "[::ffff:169.254.169.254]", [], False),
        ("*", PUBLIC, [], True),
        ("local://x.test", "x.test", [LOOPBACK, PRIVATE, "fd00::1", "::1"], True),
        ("local://x.test", "x.test", [METADATA], False),
        ("local://x.test", "x.test", ["0.0.0.0"], False),
        ("local://x.test", "x.test", ["fe80::1%1"], False),
        ("local://*.test", "x.test", [PRIVATE], True),
        ("localhost", "localhost", [LOOPBACK, "::1"], True),
        ("localhost", "localhost", [PRIVATE], False),
        ("x.localhost", "x.localhost", [LOOPBACK], True),
        (LOOPBACK, LOOPBACK, [], True),
        (METADATA, METADATA, [], True),
        ("[::1]", "[::1]", [], True),
        ("[::ffff:10.0.0.1]", "[::ffff:10.0.0.1]", [], True),
    ],
)
async def test_a_host_leads_only_where_it_may(
    grant: str, host: str, addresses: list[str], is_allowed: bool
) -> None:
    names = Names(x=[addresses], localhost=[addresses], **{"x.localhost": [addresses]})
    policy = HttpPolicy([parse_grant(grant)], lookup=names)
    with trio.fail_after(TIME_LIMIT_SECONDS):
        if is_allowed:
            found = await policy.resolve(parse_url(f"http://{host}/"))
            assert len(found) == max(1, len(addresses))
        else:
            with pytest.raises(HttpDeniedError, match="not granted") as caught:
                await policy.resolve(parse_url(f"http://{host}/"))
            assert not any(address in str(caught.value) for address in addresses)


async def test_the_error_names_the_grant_for_a_private_host() -> None:
    policy = HttpPolicy([parse_grant("x.test:81")], lookup=Names(x=[[PRIVATE]]))
    with pytest.raises(HttpDeniedError, match="leads to a private address") as caught:
        await policy.resolve(parse_url("http://x.test:81/"))
    assert caught.value.grant == "local://x.test:81"
    assert parse_grant(caught.value.grant).is_local


async def test_without_a_grant_no_host_is_looked_up() -> None:
    names = Names(x=[[PUBLIC]])
    with pytest.raises(HttpDeniedError):
        await HttpPolicy(lookup=names).resolve(parse_url("http://x.test/"))
    assert names.looked_up == []


@pytest.mark.parametrize("addresses", [[], ["no address"]])
async def test_a_host_without_addresses_was_not_found(addresses: list[str]) -> None:
    policy = HttpPolicy([parse_grant("*")], lookup=Names(x=[addresses]))
    with pytest.raises(HttpFailedError, match=r"x\.test"):
        await policy.resolve(parse_url("http://x.test/"))
