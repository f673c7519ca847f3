from __future__ import annotations

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from pie_trio.application.outgoing import HttpLimits, HttpRequest
from pie_trio.errors import (
    BadArgumentError,
    HttpDeniedError,
    HttpFailedError,
    InferletError,
    LimitError,
)
from tests.application.outgoing.servers import (
    TIME_LIMIT_SECONDS,
    Names,
    Reply,
    Seen,
    answering,
    listen,
    make_client,
    open_server,
)

OK = b"HTTP/1.1 200 OK\r\n"


def get(url: str, **fields: object) -> HttpRequest:
    return HttpRequest("GET", url, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"])
async def test_a_request_reaches_the_server_and_its_answer_comes_back(
    method: str,
) -> None:
    body = b"" if method in ("GET", "HEAD") else b"\0body"

    def reply(seen: Seen) -> Reply:
        return Reply(404, (("X-A", "1"), ("x-a", "\xe9")), seen.body)

    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_server(reply) as server:
            url = f"http://127.0.0.1:{server.port}/p?q"
            with make_client(f"127.0.0.1:{server.port}") as client:
                response = await client.request(
                    HttpRequest(method, url, (("Accept", "x"),), body)
                )
    (seen,) = server.seen
    assert (seen.method, seen.target, seen.body) == (method, "/p?q", body)
    assert seen.headers["host"] == f"127.0.0.1:{server.port}"
    assert seen.headers["accept"] == "x"
    assert "accept-encoding" not in seen.headers
    assert (response.status, response.body) == (404, body)
    assert [v for k, v in response.headers if k == "x-a"] == ["1", "\xe9"]
    assert (response.url, response.redirects) == (url, ())


async def test_nothing_is_reached_without_a_grant() -> None:
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_server() as server:
            for grants in ([], ["*:*"], ["x.test:*"], [f"[::1]:{server.port}"]):
                with make_client(*grants) as client:
                    with pytest.raises(HttpDeniedError, match="--allow-http"):
                        await client.request(get(f"http://127.0.0.1:{server.port}/"))
            assert server.num_connections == 0


async def test_localhost_is_reached_by_its_grant() -> None:
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_server() as server:
            with make_client(f"localhost:{server.port}") as client:
                url = f"http://localhost:{server.port}/"
                assert (await client.request(get(url))).status == 200


async def test_a_connection_serves_many_requests_and_is_closed_in_the_end() -> None:
    names = Names(x=[["127.0.0.1"]])
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_server() as server:
            url = f"http://x.test:{server.port}/"
            with make_client("local://x.test:*", lookup=names) as client:
                for number in range(20):
                    body = str(number).encode()
                    response = await client.request(HttpRequest("POST", url, (), body))
                    assert response.body == body
                assert client.num_idle == 1
                assert server.num_connections == len(names.looked_up) == 1
            assert client.num_idle == 0


async def test_requests_at_once_are_limited_and_idle_connections_too() -> None:
    limits = HttpLimits(max_concurrent=3, max_idle=2)
    num_open, most, gate = 0, 0, trio.Event()

    async def handle(stream: trio.SocketStream) -> None:
        nonlocal num_open, most
        num_open += 1
        most = max(most, num_open)
        while await stream.receive_some():
            await gate.wait()
            await stream.send_all(OK + b"content-length: 0\r\n\r\n")
        num_open -= 1

    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with listen(handle) as port:
            with make_client(f"127.0.0.1:{port}", limits=limits) as client:
                async with trio.open_nursery() as nursery:
                    for _ in range(9):
                        nursery.start_soon(
                            client.request, get(f"http://127.0.0.1:{port}/")
                        )
                    while num_open < 3:
                        await wait_all_tasks_blocked()
                    gate.set()
                assert client.num_idle <= 2
    assert most == 3


async def test_an_old_idle_connection_is_not_used_again() -> None:
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_server() as server:
            limits = HttpLimits(idle_seconds=-1)
            with make_client(f"127.0.0.1:{server.port}", limits=limits) as client:
                for _ in range(2):
                    await client.request(get(f"http://127.0.0.1:{server.port}/"))
                assert client.num_idle == 0
            assert server.num_connections == 2


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_connection_that_the_server_closed_is_not_used_again(
    method: str,
) -> None:
    num_connections, is_closed = 0, trio.Event()

    async def handle(stream: trio.SocketStream) -> None:
        nonlocal num_connections
        num_connections += 1
        await stream.receive_some()
        await stream.send_all(OK + b"content-length: 0\r\n\r\n")
        await stream.aclose()
        is_closed.set()

    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with listen(handle) as port:
            with make_client(f"127.0.0.1:{port}") as client:
                for _ in range(3):
                    is_closed = trio.Event()
                    url = f"http://127.0.0.1:{port}/"
                    assert (
                        await client.request(HttpRequest(method, url))
                    ).status == 200
                    await is_closed.wait()
    assert num_connections == 3


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_connection_that_ends_when_used_again_is_tried_anew_if_that_is_safe(
    method: str,
) -> None:
    num_connections = 0

    async def handle(stream: trio.SocketStream) -> None:
        nonlocal num_connections
        num_connections += 1
        await stream.receive_some()
        await stream.send_all(OK + b"content-length: 0\r\n\r\n")
        await stream.receive_some()  # and close without an answer

    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with listen(handle) as port:
            request = HttpRequest(method, f"http://127.0.0.1:{port}/")
            with make_client(f"127.0.0.1:{port}") as client:
                await client.request(request)
                if method == "GET":
                    assert (await client.request(request)).status == 200
                else:
                    with pytest.raises(HttpFailedError, match="without an answer"):
                        await client.request(request)
    assert num_connections == (2 if method == "GET" else 1)


async def test_what_a_server_sends_beyond_its_answer_is_no_later_answer() -> None:
    data = OK + b"content-length: 2\r\n\r\nok" + OK + b"content-length: 4\r\n\r\nevil"
    num_connections = 0

    async def handle(stream: trio.SocketStream) -> None:
        nonlocal num_connections
        num_connections += 1
        while await stream.receive_some():
            await stream.send_all(data)

    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with listen(handle) as port:
            with make_client(f"127.0.0.1:{port}") as client:
                for _ in range(3):
                    response = await client.request(get(f"http://127.0.0.1:{port}/"))
                    assert response.body == b"ok"
    assert num_connections == 3


async def test_a_second_lookup_cannot_lead_elsewhere() -> None:
    names = Names(x=[["127.0.0.1"], ["169.254.169.254"]])
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_server() as server:
            url = f"http://x.test:{server.port}/"
            with make_client("local://x.test:*", lookup=names) as client:
                assert (await client.request(get(url))).status == 200
                assert names.looked_up == ["x.test"]
                client.close()  # keeps no connections from now on
                with pytest.raises(HttpDeniedError, match="link-local"):
                    await client.request(get(url))
            assert server.num_connections == 1


async def test_the_next_address_is_tried_where_one_takes_no_connection() -> None:
    names = Names(x=[["::1", "127.0.0.1"]])
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_server() as server:
            with make_client("local://x.test:*", lookup=names) as client:
                url = f"http://x.test:{server.port}/"
                assert (await client.request(get(url))).status == 200


async def test_who_does_not_listen_is_named() -> None:
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_server() as server:
            port = server.port
        with make_client(f"127.0.0.1:{port}") as client:
            with pytest.raises(HttpFailedError, match=f"127.0.0.1:{port}.*refused"):
                await client.request(get(f"http://127.0.0.1:{port}/"))


def redirect(status: int, location: str) -> Reply:
    return Reply(status, (("Location", location),), b"gone")


@pytest.mark.parametrize(
    ("status", "method", "expected"),
    [
        *((301, "POST", "GET"), (302, "POST", "GET"), (303, "POST", "GET")),
        *((307, "POST", "POST"), (308, "POST", "POST"), (301, "PUT", "PUT")),
        *((303, "DELETE", "GET"), (303, "HEAD", "HEAD"), (302, "GET", "GET")),
    ],
)
async def test_a_redirect_is_followed_as_its_status_says(
    status: int, method: str, expected: str
) -> None:
    def reply(seen: Seen) -> Reply:
        return redirect(status, "../b?c#d") if seen.target == "/x/a" else Reply()

    body = b"" if method in ("GET", "HEAD") else b"body"
    headers = (("Content-Type", "x/y"), ("Authorization", "secret"))
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_server(reply) as server:
            base = f"http://127.0.0.1:{server.port}"
            with make_client(f"127.0.0.1:{server.port}") as client:
                response = await client.request(
                    HttpRequest(method, f"{base}/x/a", headers, body)
                )
    _, seen = server.seen
    assert (seen.method, seen.target) == (expected, "/b?c")
    assert seen.body == (body if expected == method else b"")
    assert ("content-type" in seen.headers) == (expected == method)
    assert seen.headers["authorization"] == "secret", "it stays at its origin"
    assert (response.status, response.url) == (200, f"{base}/b?c")
    assert response.redirects == (f"{base}/x/a",)


async def test_credentials_do_not_leave_their_origin() -> None:
    headers = (("Authorization", "a"), ("Cookie", "b"), ("X-Other", "c"))
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_server() as second:
            there = f"http://127.0.0.1:{second.port}/there"
            async with open_server(lambda _: redirect(302, there)) as first:
                with make_client("127.0.0.1:*") as client:
                    url = f"http://127.0.0.1:{first.port}/"
                    response = await client.request(get(url, headers=headers))
    assert response.url == there
    assert first.seen[0].headers.keys() >= {"authorization", "cookie", "x-other"}
    assert not second.seen[0].headers.keys() & {"authorization", "cookie"}
    assert second.seen[0].headers["x-other"] == "c"


@pytest.mark.parametrize(
    ("location", "match"),
    [
        ("http://169.254.169.254/latest/meta-data/", "link-local"),
        ("http://10.0.0.1/", "private"),
        ("//inner.test/", "private"),
        ("http://[::1]/", "loopback"),
        ("http://[::ffff:127.0.0.1]/", "loopback"),
        ("http://127.0.0.1:1/", "is not granted"),
        ("http://other.test:8080/", "redirects, and .* is not granted"),
    ],
)
async def test_a_redirect_leads_only_where_a_request_may(
    location: str, match: str
) -> None:
    names = Names(inner=[["10.0.0.1"]])
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_server(lambda _: redirect(302, location)) as server:
            grants = (f"127.0.0.1:{server.port}", "*")
            with make_client(*grants, lookup=names) as client:
                with pytest.raises(HttpDeniedError, match=match):
                    await client.request(get(f"http://127.0.0.1:{server.port}/"))


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "http://a b/", "http://u@a/"]
)
async def test_a_redirect_to_what_is_no_url_fails(location: str) -> None:
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_server(lambda _: redirect(302, location)) as server:
            with make_client("127.0.0.1:*", "*:*") as client:
                with pytest.raises(HttpFailedError, match="cannot be requested"):
                    await client.request(get(f"http://127.0.0.1:{server.port}/"))


@pytest.mark.parametrize("num_redirects", [5, 6])
async def test_redirects_are_followed_five_times(num_redirects: int) -> None:
    def reply(seen: Seen) -> Reply:
        number = int(seen.target[1:])
        return redirect(307, f"/{number - 1}") if number else Reply()

    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_server(reply) as server:
            url = f"http://127.0.0.1:{server.port}/{num_redirects}"
            with make_client("127.0.0.1:*") as client:
                if num_redirects == 5:
                    response = await client.request(get(url))
                    assert len(response.redirects) == 5
                else:
                    with pytest.raises(HttpFailedError, match="more than 5 redirects"):
                        await client.request(get(url))


async def test_a_redirect_is_returned_where_the_inferlet_wants_it() -> None:
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_server(lambda _: redirect(302, "http://10.0.0.1/")) as server:
            url = f"http://127.0.0.1:{server.port}/"
            with make_client("127.0.0.1:*") as client:
                response = await client.request(get(url, follows_redirects=False))
    assert (response.status, response.body) == (302, b"gone")
    assert ("location", "http://10.0.0.1/") in response.headers


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"content-length: 11\r\n\r\n" + b"x" * 11,
        OK + b"\r\n" + b"x" * 11,
        OK + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 11 + b"0\r\n\r\n",
    ],
    ids=["length", "until-the-end", "chunked"],
)
@pytest.mark.parametrize("max_response_bytes", [10, 11])
async def test_an_answer_may_not_be_too_large(
    answer: bytes, max_response_bytes: int
) -> None:
    limits = HttpLimits(max_response_bytes=max_response_bytes)
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with listen(answering(answer)) as port:
            url = f"http://127.0.0.1:{port}/"
            with make_client("127.0.0.1:*", limits=limits) as client:
                if max_response_bytes == 11:
                    assert (await client.request(get(url))).body == b"x" * 11
                else:
                    with pytest.raises(HttpFailedError, match="more than 10 bytes"):
                        await client.request(get(url))


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (b"", "without an answer"),
        (b"no http\r\n\r\n", "not valid HTTP"),
        (b"HTTP/1.1 999999 OK\r\n\r\n", "not valid HTTP"),
        (OK[:9], "not valid HTTP"),
        (OK + b"x: y\r\n", "not valid HTTP"),
        (OK + b"content-length: 5\r\n\r\nx", "not valid HTTP"),
        (OK + b"content-length: -1\r\n\r\nx", "not valid HTTP"),
        (OK + b"content-length: 1\r\ncontent-length: 2\r\n\r\nxx", "not valid HTTP"),
        (OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n", "not valid HTTP"),
        (OK + b"transfer-encoding: chunked\r\n\r\n5\r\nx", "not valid HTTP"),
        (OK + b"x: " + b"y" * (66 << 10) + b"\r\n\r\n", "bytes of headers"),
        (OK + b"x: " + b"y" * (200 << 10), "not valid HTTP"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "not valid HTTP"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 17, "announces"),
    ],
)
async def test_an_answer_that_is_malformed_fails(answer: bytes, match: str) -> None:
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with listen(answering(answer)) as port:
            with make_client("127.0.0.1:*") as client:
                with pytest.raises(HttpFailedError, match=match) as caught:
                    await client.request(get(f"http://127.0.0.1:{port}/"))
                assert client.num_idle == 0
    assert caught.value.code == "failed"
    assert f"127.0.0.1:{port}" in str(caught.value)


@given(st.binary(max_size=40), st.sampled_from([b"", b"HTTP/1.1 ", OK, OK + b"\r\n"]))
@settings(max_examples=50)
def test_whatever_a_server_sends_is_an_answer_or_a_failure(
    junk: bytes, start: bytes
) -> None:
    async def main() -> None:
        with trio.fail_after(TIME_LIMIT_SECONDS):
            async with listen(answering(start + junk)) as port:
                with make_client("127.0.0.1:*") as client:
                    try:
                        await client.request(get(f"http://127.0.0.1:{port}/"))
                    except HttpFailedError as error:
                        assert str(port) in str(error)

    trio.run(main)


async def test_an_early_answer_to_a_large_body_is_read() -> None:
    async def handle(stream: trio.SocketStream) -> None:
        await stream.receive_some(100)
        await stream.send_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
        while await stream.receive_some():  # a reset might overtake the answer
            pass

    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with listen(handle) as port:
            with make_client("127.0.0.1:*") as client:
                request = HttpRequest(
                    "PUT", f"http://127.0.0.1:{port}/", body=bytes(1 << 20)
                )
                assert (await client.request(request)).status == 413


@pytest.mark.parametrize(
    "start", [b"", OK, OK + b"content-length: 9\r\n\r\nx"], ids=["none", "head", "body"]
)
@pytest.mark.parametrize("limited_by", ["request", "server"])
async def test_a_slow_server_meets_the_deadline_and_is_left(
    start: bytes, limited_by: str
) -> None:
    has_left = trio.Event()

    async def handle(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(start)
        await stream.receive_some()
        has_left.set()

    by_server = limited_by == "server"
    limits = HttpLimits(timeout_seconds=0.05 if by_server else TIME_LIMIT_SECONDS)
    timeout_seconds = None if by_server else 0.05
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with listen(handle) as port:
            with make_client("127.0.0.1:*", limits=limits) as client:
                url = f"http://127.0.0.1:{port}/"
                with pytest.raises(HttpFailedError, match=r"within 0\.05 seconds"):
                    await client.request(get(url, timeout_seconds=timeout_seconds))
                await has_left.wait()
                assert client.num_idle == 0


@pytest.mark.parametrize(
    "start", [b"", OK, OK + b"content-length: 9\r\n\r\nx"], ids=["none", "head", "body"]
)
async def test_a_cancelled_request_closes_its_socket_and_gives_its_turn_back(
    start: bytes,
) -> None:
    has_started, has_left = trio.Event(), trio.Event()

    async def handle(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(start)
        has_started.set()
        await stream.receive_some()
        has_left.set()

    limits = HttpLimits(max_concurrent=1)
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with listen(handle) as port:
            with make_client("127.0.0.1:*", limits=limits) as client:
                for _ in range(2):
                    has_started, has_left = trio.Event(), trio.Event()
                    async with trio.open_nursery() as nursery:
                        url = f"http://127.0.0.1:{port}/"
                        nursery.start_soon(client.request, get(url))
                        await has_started.wait()
                        nursery.cancel_scope.cancel()
                    await has_left.wait()
                    assert client.num_idle == 0


async def test_a_request_can_be_cancelled_while_its_host_is_looked_up() -> None:
    async def lookup(host: str, port: int) -> list[str]:
        await trio.sleep_forever()
        raise AssertionError

    with trio.fail_after(TIME_LIMIT_SECONDS):
        with make_client("x.test", lookup=lookup) as client:
            with pytest.raises(HttpFailedError, match="within"):
                await client.request(get("http://x.test/", timeout_seconds=0.01))


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"url": "ftp://127.0.0.1/"}, BadArgumentError),
        ({"method": "TRACE"}, BadArgumentError),
        ({"headers": (("host", "x"),)}, BadArgumentError),
        ({"headers": (("x", "y\r\nz: 1"),)}, BadArgumentError),
        ({"body": bytes(11)}, LimitError),
    ],
)
async def test_what_cannot_be_sent_is_refused_before_anything_is_opened(
    fields: dict[str, object], error: type[InferletError]
) -> None:
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_server() as server:
            url = f"http://127.0.0.1:{server.port}/"
            limits = HttpLimits(max_request_bytes=10)
            with make_client("127.0.0.1:*", limits=limits) as client:
                request = HttpRequest(**{"method": "POST", "url": url, **fields})  # type: ignore[arg-type]
                with pytest.raises(error):
                    await client.request(request)
            assert server.num_connections == 0
