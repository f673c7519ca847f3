"""TLS, and certificates that are none."""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio
import trustme
from cryptography.hazmat.primitives import serialization

from pie_trio.application.web import make_event_stream
from pie_trio.application.web.shell import ShellConfig, TlsFiles, load_tls
from pie_trio.errors import ConfigError
from tests.application.web.clients import open_websocket
from tests.application.web.servers import LONG_SECONDS, Probe, app_with, running, settle
from tests.application.web.test_websocket import echo

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path


class Secure:
    """A certificate for ``x.test`` in files, and a client's context that trusts it."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.certificate = authority.issue_cert("x.test")
        self.files = TlsFiles(folder / "cert.pem", folder / "key.pem")
        chain = b"".join(part.bytes() for part in self.certificate.cert_chain_pems)
        self.files.certificate.write_bytes(chain)
        self.files.key.write_bytes(self.certificate.private_key_pem.bytes())
        self.client_context = ssl.create_default_context()
        authority.configure_trust(self.client_context)


@pytest.fixture
def secure(tmp_path: Path) -> Secure:
    return Secure(tmp_path)


async def hello() -> str:
    return "hello" * 10_000


async def test_requests_and_websockets_are_served(secure: Secure) -> None:
    app = app_with(hello=hello)
    app.add_websocket("/ws", "ws", echo)
    async with running(app, ssl_context=load_tls(secure.files)) as server:
        assert server.urls[0].startswith("https://127.0.0.1:")
        async with await server.connect(ssl_context=secure.client_context) as client:
            for _ in range(3):
                assert (await client.get("/hello")).body == b"hello" * 10_000
            ws = await open_websocket(client)
            await ws.send_text("hello")
            assert await ws.read_text() == "hello"


@pytest.mark.parametrize("how", ["fin", "rst", "half-close"])
async def test_a_client_that_leaves_cancels_its_handler(
    secure: Secure, how: str
) -> None:
    probe = Probe()

    async def stream() -> object:
        async def events() -> AsyncGenerator[bytes]:
            with probe.watch():
                while True:
                    yield b"x" * 1000
                    await trio.sleep(0.002)

        return make_event_stream(events())

    context, app = load_tls(secure.files), app_with(stream=stream)
    config = ShellConfig(stall_seconds=LONG_SECONDS)
    async with running(app, config, ssl_context=context) as server:
        async with await server.connect(ssl_context=secure.client_context) as client:
            await client.send_get("/stream")
            await probe.began.wait()
            await client.leave(how)
            await probe.wait_for_end()
    assert (probe.num_cancelled, probe.num_ended) == (1, 1)


async def test_a_client_that_takes_nothing_is_cut(secure: Secure) -> None:
    probe = Probe()

    async def stream() -> object:
        async def events() -> AsyncGenerator[bytes]:
            with probe.watch():
                while True:
                    yield b"x" * 16384

        return make_event_stream(events())

    context, app = load_tls(secure.files), app_with(stream=stream)
    config = ShellConfig(stall_seconds=0.1)
    async with running(app, config, ssl_context=context) as server:
        async with await server.connect(
            ssl_context=secure.client_context, receive_buffer=4096
        ) as client:
            await client.send_get("/stream")
            await probe.wait_for_end()
    assert probe.num_cancelled == 1


async def test_an_answer_that_closes_arrives_whole(secure: Secure) -> None:
    context, app = load_tls(secure.files), app_with(hello=hello)
    async with running(app, ssl_context=context) as server:
        async with await server.connect(ssl_context=secure.client_context) as client:
            await client.send(
                b"POST /none HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n123"
            )
            assert (await client.read_response()).status == 404
            await client.expect_end()


async def test_the_end_of_a_large_early_answer_is_not_lost(secure: Secure) -> None:
    async def large() -> bytes:
        return b"x" * 300_000

    context, app = load_tls(secure.files), app_with(large=large)
    async with running(app, ssl_context=context) as server:
        async with await server.connect(
            ssl_context=secure.client_context, receive_buffer=4096
        ) as client:
            head = b"POST /large HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n"
            await client.send(head)
            num_bytes = 0
            while num_bytes < 290_000:  # the server has written all, but not sent it
                num_bytes += len(await client.stream.receive_some(1024))
            await settle()
            await client.send(b"late")
            await settle()
            assert num_bytes + len(await client.read_all()) >= 300_000


async def test_a_server_with_tls_drains(secure: Secure) -> None:
    context, app = load_tls(secure.files), app_with(hello=hello)
    async with running(app, ssl_context=context) as server:
        async with await server.connect(ssl_context=secure.client_context) as client:
            assert (await client.get("/hello")).status == 200
            server.shutdown.set()
            await client.expect_end()
        with trio.fail_after(30):
            await server.ended.wait()


async def test_a_handshake_cannot_hold_up_the_end(secure: Secure) -> None:
    config = ShellConfig(
        handshake_seconds=LONG_SECONDS, drain_seconds=0.05, close_seconds=0.05
    )
    async with running(
        app_with(), config, ssl_context=load_tls(secure.files)
    ) as server:
        async with await server.connect() as client:
            await client.send(b"\x16\x03\x01")
            await settle()
            server.shutdown.set()
            with trio.fail_after(30):
                await server.ended.wait()


@pytest.mark.parametrize(
    ("offer", "agreed"), [(["h2", "http/1.1"], "http/1.1"), (["h2"], None), ([], None)]
)
async def test_http_2_is_not_agreed_to(
    secure: Secure, offer: list[str], agreed: str | None
) -> None:
    if offer:
        secure.client_context.set_alpn_protocols(offer)
    app = app_with(hello=hello)
    async with running(app, ssl_context=load_tls(secure.files)) as server:
        async with await server.connect(ssl_context=secure.client_context) as client:
            assert isinstance(client.stream, trio.SSLStream)
            assert client.stream.selected_alpn_protocol() == agreed
            await client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            response = await client.read_response()
            assert response.status == 505
            assert "HTTP/2.0" in response.error["message"]


async def test_a_client_without_tls_is_told_to_speak_it(secure: Secure) -> None:
    context = load_tls(secure.files)
    async with running(app_with(hello=hello), ssl_context=context) as server:
        async with await server.connect() as client:
            await client.send(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
            response = await client.read_response()
            assert response.status == 400
            assert "https://" in response.error["message"]
            await client.expect_end()


@pytest.mark.parametrize("said", [b"", b"\r\n\r\n", b"\x00" * 100])
async def test_what_is_neither_tls_nor_http_ends_nobody(
    secure: Secure, said: bytes
) -> None:
    context = load_tls(secure.files)
    async with running(app_with(hello=hello), ssl_context=context) as server:
        async with await server.connect() as client:
            if said:
                await client.send(said)
            else:
                await client.leave("rst")
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                assert b"HTTP" not in await client.read_all()
        async with await server.connect(ssl_context=secure.client_context) as client:
            assert (await client.get("/hello")).status == 200


async def test_a_handshake_has_its_time(secure: Secure) -> None:
    context, config = load_tls(secure.files), ShellConfig(handshake_seconds=0.05)
    async with running(app_with(), config, ssl_context=context) as server:
        async with await server.connect() as client:
            await client.send(b"\x16\x03\x01")
            await client.expect_end()


def test_old_versions_of_tls_are_not_spoken(secure: Secure) -> None:
    assert load_tls(secure.files).minimum_version == ssl.TLSVersion.TLSv1_2


def test_files_that_are_no_certificate_are_named(
    secure: Secure, tmp_path: Path
) -> None:
    files = secure.files
    text, other = tmp_path / "text", Secure(tmp_path_of(tmp_path)).files
    text.write_text("no PEM")
    encrypted = tmp_path / "encrypted.pem"
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    for wrong, match in [
        (TlsFiles(tmp_path / "none", files.key), "cannot read the TLS file .*none"),
        (TlsFiles(files.certificate, tmp_path), "cannot read the TLS file"),
        (TlsFiles(text, files.key), "no certificate and its key"),
        (TlsFiles(files.certificate, text), "no certificate and its key"),
        (TlsFiles(files.certificate, other.key), "mismatch"),
        (TlsFiles(files.certificate, encrypted), "is encrypted"),
    ]:
        with pytest.raises(ConfigError, match=match):
            load_tls(wrong)


def tmp_path_of(folder: Path) -> Path:
    other = folder / "other"
    other.mkdir()
    return other
