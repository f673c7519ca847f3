"""Requests of an instance to servers on loopback."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trio

from pie_trio.application.services import Grants, Outgoing, Services
from pie_trio.config import InstanceLimits, SharedLimits
from pie_trio.control.quotas import Quotas
from pie_trio.errors import HttpDeniedError, LimitError, UnsupportedError
from tests.application.host.clients import open_rig
from tests.application.outgoing.servers import NO_TLS, Reply, listen, open_server

if TYPE_CHECKING:
    from tests.application.host.clients import Client

PLAIN = Outgoing(make_ssl_context=lambda: NO_TLS)
NO_BYTES = np.empty(0, np.uint8)


def request(
    url: str, *, method: str = "GET", body: bytes = b"", follow: bool = True
) -> tuple[Any, ...]:
    data = np.frombuffer(body, np.uint8)
    return method, url, [("x-test", "yes")], data, None, follow


async def take(client: Client, ticket: int) -> tuple[Any, ...]:
    response: tuple[Any, ...] = await client.resolve(
        client.session.take_response(ticket)
    )
    return response


async def test_a_request_brings_the_answer_of_the_server() -> None:
    async with open_server() as server, open_rig(outgoing=PLAIN) as rig:
        grants = Grants(http=(f"127.0.0.1:{server.port}",))
        url = f"http://127.0.0.1:{server.port}/path"
        async with rig.open_client(grants=grants) as client:
            session = client.session
            ticket = session.http_request(request(url, method="PUT", body=b"\x00data"))
            status, headers, body, final_url = await take(client, ticket)
            assert (status, body, final_url) == (200, b"\x00data", url)
            assert ("content-length", "5") in headers
            data = np.frombuffer(b"posted", np.uint8)
            posted = session.http_post(url, "text/plain", data)
            assert (await take(client, posted))[2] == b"posted"
            assert (await take(client, session.http_get(url)))[2] == b""
        seen = server.seen
        assert [each.method for each in seen] == ["PUT", "POST", "GET"]
        assert seen[0].headers["x-test"] == "yes"
        assert seen[1].headers["content-type"] == "text/plain"


async def test_redirects_are_followed_unless_that_is_not_wanted() -> None:
    reply = Reply(302, (("location", "/there"),))
    async with (
        open_server(lambda seen: reply if seen.target == "/" else Reply()) as server,
        open_rig(outgoing=PLAIN) as rig,
    ):
        grants = Grants(http=(f"127.0.0.1:{server.port}",))
        url = f"http://127.0.0.1:{server.port}/"
        async with rig.open_client(grants=grants) as client:
            for follow, status, end in ((True, 200, "there"), (False, 302, "")):
                ticket = client.session.http_request(request(url, follow=follow))
                answer = await take(client, ticket)
                assert (answer[0], answer[3]) == (status, url + end)


@pytest.mark.parametrize(
    ("url", "granted", "grant"),
    [
        ("http://127.0.0.1:{port}/", (), "127.0.0.1:{port}"),
        ("http://169.254.169.254/latest", ("*",), "169.254.169.254"),
        ("http://inside.test:{port}/", ("*:*",), "local://inside.test:{port}"),
    ],
)
async def test_a_refusal_names_the_grant(
    url: str, granted: tuple[str, ...], grant: str
) -> None:
    async def lookup(_host: str, _port: int) -> list[str]:
        await trio.lowlevel.checkpoint()
        return ["127.0.0.1"]

    outgoing = Outgoing(make_ssl_context=lambda: NO_TLS, lookup=lookup)
    async with open_server() as server, open_rig(outgoing=outgoing) as rig:
        async with rig.open_client(grants=Grants(http=granted)) as client:
            ticket = client.session.http_get(url.format(port=server.port))
            with pytest.raises(HttpDeniedError) as refused:
                await take(client, ticket)
        wanted = grant.format(port=server.port)
        assert f"--allow-http {wanted}" in str(refused.value)
        assert server.num_connections == 0


async def test_a_cancelled_request_closes_its_connection() -> None:
    arrived, closed = trio.Event(), trio.Event()

    async def hold(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        arrived.set()
        await stream.receive_some()
        closed.set()

    async with listen(hold) as port, open_rig(outgoing=PLAIN) as rig:
        grants = Grants(http=(f"127.0.0.1:{port}",))
        async with rig.open_client(grants=grants) as client:
            ticket = client.session.http_get(f"http://127.0.0.1:{port}/")
            await arrived.wait()
            client.session.cancel(ticket)
            await closed.wait()
            await client.session.tasks.close()
            assert len(client.session.tasks) == 0


async def test_a_server_that_makes_no_requests_says_so() -> None:
    async with open_rig() as rig:
        rig.services = Services(rig.models)
        async with rig.open_client() as client:
            with pytest.raises(UnsupportedError, match="makes no requests"):
                client.session.http_get("http://example.com/")


async def test_requests_and_their_bytes_are_limited() -> None:
    reply = Reply(body=b"x" * 1000)
    limits = InstanceLimits(max_http_requests=4, max_http_bytes=2500)
    async with (
        open_server(lambda _: reply) as server,
        open_rig(outgoing=PLAIN, limits=limits) as rig,
    ):
        quotas = Quotas(SharedLimits(), SharedLimits(http_requests=2))
        rig.services = replace(rig.services, quotas=quotas)
        grants = Grants(http=(f"127.0.0.1:{server.port}",))
        url = f"http://127.0.0.1:{server.port}/"
        async with (
            rig.open_client("a", owner="ann", grants=grants) as client,
            rig.open_client("b", owner="ann", grants=grants) as other,
        ):
            session = client.session
            tickets = [session.http_get(url), other.session.http_get(url)]
            with pytest.raises(LimitError, match=r"3 http requests .* the user ann"):
                session.http_get(url)
            await take(client, tickets[0])
            await take(other, tickets[1])
            large = request(url, method="PUT", body=b"x" * 2000)
            with pytest.raises(LimitError, match=r"\d+ http bytes would be used"):
                session.http_request(large)
            await take(client, session.http_get(url))
            head = session.open_http(1, request(url))
            await client.resolve(session.take_head(head))
            with pytest.raises(LimitError, match="http bytes would be used in all"):
                await client.resolve(session.take_body(session.read_body(1)))
            session.close_body(1)
            await take(client, session.http_get(url))
            with pytest.raises(
                LimitError, match="5 http requests would be used in all"
            ):
                session.http_get(url)
        assert quotas.server.is_idle
