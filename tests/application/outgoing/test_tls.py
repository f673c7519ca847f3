from __future__ import annotations

import ssl

import pytest
import trio
import trustme

from pie_trio.application.outgoing import HttpRequest, make_ssl_context
from pie_trio.errors import HttpDeniedError, HttpFailedError
from tests.application.outgoing.servers import (
    TIME_LIMIT_SECONDS,
    Names,
    Reply,
    Seen,
    Server,
    listen,
    make_client,
)


class Secure:
    """A server with a certificate for ``x.test``, and a client's context that trusts it."""

    def __init__(self, reply: Reply | None = None) -> None:
        authority = trustme.CA()
        self.client_context = make_ssl_context()
        authority.configure_trust(self.client_context)
        self._server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("x.test", "127.0.0.1").configure_cert(self._server_context)
        self.server = Server(lambda seen: reply or self._default(seen))
        self.names_asked = list[str | None]()
        self._server_context.sni_callback = self._note_name

    async def serve(self, tcp: trio.SocketStream) -> None:
        stream = trio.SSLStream(
            tcp, self._server_context, server_side=True, https_compatible=True
        )
        await self.server.serve(stream)

    def _note_name(
        self, _socket: ssl.SSLObject, name: str | None, _context: ssl.SSLContext
    ) -> None:
        self.names_asked.append(name)

    def _default(self, seen: Seen) -> Reply:
        return Reply(body=seen.body)


async def test_a_secure_request_is_for_the_name_at_the_checked_address() -> None:
    secure, names = Secure(), Names(x=[["127.0.0.1"]])
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with listen(secure.serve) as port:
            client = make_client(
                "local+https://x.test:*",
                lookup=names,
                ssl_context=secure.client_context,
            )
            with client:
                for _ in range(3):
                    request = HttpRequest(
                        "POST", f"https://x.test:{port}/", body=b"x" * 100_000
                    )
                    assert (await client.request(request)).body == request.body
                assert client.num_idle == 1
    assert secure.names_asked == ["x.test"]
    assert secure.server.num_connections == 1
    assert secure.server.seen[0].headers["host"] == f"x.test:{port}"


async def test_an_address_may_be_in_a_certificate() -> None:
    secure = Secure()
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with listen(secure.serve) as port:
            with make_client(
                "127.0.0.1:*", ssl_context=secure.client_context
            ) as client:
                request = HttpRequest("GET", f"https://127.0.0.1:{port}/")
                assert (await client.request(request)).status == 200


@pytest.mark.parametrize(
    ("host", "is_trusted", "match"),
    [
        ("y.test", True, "Hostname mismatch"),
        ("x.test", False, "self-signed certificate|unable to get local issuer"),
    ],
)
async def test_a_certificate_that_is_not_the_hosts_is_refused(
    host: str, is_trusted: bool, match: str
) -> None:
    secure, names = Secure(), Names(x=[["127.0.0.1"]], y=[["127.0.0.1"]])
    context = secure.client_context if is_trusted else make_ssl_context()
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with listen(secure.serve) as port:
            client = make_client("local://*.test:*", lookup=names, ssl_context=context)
            with client, pytest.raises(HttpFailedError, match=match):
                await client.request(HttpRequest("GET", f"https://{host}:{port}/"))
    assert secure.server.seen == []


async def test_a_server_without_tls_is_no_secure_one() -> None:
    async def handle(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with listen(handle) as port:
            with make_client("127.0.0.1:*") as client:
                with pytest.raises(HttpFailedError, match="no secure connection"):
                    await client.request(
                        HttpRequest("GET", f"https://127.0.0.1:{port}/")
                    )


async def test_a_redirect_does_not_leave_encryption() -> None:
    secure = Secure(Reply(302, (("location", "http://127.0.0.1:1/"),)))
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with listen(secure.serve) as port:
            with make_client(
                "127.0.0.1:*", ssl_context=secure.client_context
            ) as client:
                with pytest.raises(HttpDeniedError, match="not encrypted"):
                    await client.request(
                        HttpRequest("GET", f"https://127.0.0.1:{port}/")
                    )
