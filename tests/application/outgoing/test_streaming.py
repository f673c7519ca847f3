"""Answers whose bodies are handed on as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from pie_trio.application.outgoing import HttpLimits, HttpRequest, HttpResponse
from pie_trio.errors import HttpDeniedError, HttpFailedError
from tests.application.outgoing.servers import (
    TIME_LIMIT_SECONDS,
    Reply,
    Seen,
    answering,
    listen,
    make_client,
    open_server,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

OK = b"HTTP/1.1 200 OK\r\n"


class Sink:
    """Keeps the head and the parts of an answer."""

    def __init__(self) -> None:
        self.heads: list[HttpResponse] = []
        self.body = b""

    def __call__(self, head: HttpResponse) -> Callable[[bytes], Awaitable[None]]:
        self.heads.append(head)
        return self.write

    async def write(self, data: bytes) -> None:
        self.body += data


async def test_a_streamed_answer_leaves_its_connection_for_the_next() -> None:
    sink = Sink()
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_server(lambda _: Reply(404, body=b"x" * 100_000)) as server:
            url = f"http://127.0.0.1:{server.port}/"
            with make_client(f"127.0.0.1:{server.port}") as client:
                await client.stream(HttpRequest("GET", url), sink)
                await client.stream(HttpRequest("GET", url), sink)
    assert [(head.status, head.body, head.url) for head in sink.heads] == [
        (404, b"", url)
    ] * 2
    assert sink.body == b"x" * 200_000
    assert server.num_connections == 1


async def test_a_body_has_no_limit_of_size() -> None:
    sink = Sink()
    limits = HttpLimits(max_response_bytes=10)
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_server(lambda _: Reply(body=b"x" * 1000)) as server:
            url = f"http://127.0.0.1:{server.port}/"
            with make_client(f"127.0.0.1:{server.port}", limits=limits) as client:
                await client.stream(HttpRequest("GET", url), sink)
                with pytest.raises(HttpFailedError, match="more than 10 bytes"):
                    await client.request(HttpRequest("GET", url))
    assert len(sink.body) == 1000


@pytest.mark.parametrize("follows", [True, False])
async def test_only_the_last_answer_is_streamed(follows: bool) -> None:
    def reply(seen: Seen) -> Reply:
        if seen.target == "/":
            return Reply(302, (("location", "/there"),), b"moved")
        return Reply(body=b"here")

    sink = Sink()
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_server(reply) as server:
            url = f"http://127.0.0.1:{server.port}/"
            with make_client(f"127.0.0.1:{server.port}") as client:
                request = HttpRequest("GET", url, follows_redirects=follows)
                await client.stream(request, sink)
    (head,) = sink.heads
    if follows:
        assert (head.url, head.redirects, sink.body) == (f"{url}there", (url,), b"here")
    else:
        assert (head.status, head.redirects, sink.body) == (302, (), b"moved")


async def test_a_redirect_leads_only_where_a_request_may() -> None:
    sink = Sink()
    away = Reply(302, (("location", "http://127.0.0.2/"),))
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_server(lambda _: away) as server:
            with make_client(f"127.0.0.1:{server.port}") as client:
                url = f"http://127.0.0.1:{server.port}/"
                with pytest.raises(HttpDeniedError):
                    await client.stream(HttpRequest("GET", url), sink)
                with pytest.raises(HttpDeniedError):
                    await client.stream(HttpRequest("GET", "http://127.0.0.2/"), sink)
    assert sink.heads == []


async def test_an_answer_that_ends_too_soon_fails_after_its_parts() -> None:
    sink = Sink()
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with listen(answering(OK + b"content-length: 9\r\n\r\nabc")) as port:
            with make_client(f"127.0.0.1:{port}") as client:
                url = f"http://127.0.0.1:{port}/"
                with pytest.raises(HttpFailedError, match="not valid HTTP"):
                    await client.stream(HttpRequest("GET", url), sink)
                assert client.num_idle == 0
    assert sink.body == b"abc"
