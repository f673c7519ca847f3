"""Certificates that a client trusts, and what it says of those that it does not."""

from __future__ import annotations

import contextlib
import ssl
from typing import TYPE_CHECKING

import pytest
import trustme

from pie_trio.client import Client, UnreachableError
from pie_trio.client.trust import trust_file
from pie_trio.errors import ConfigError
from tests.application.web.servers import app_with, running

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

VARIABLES = ("PIE_CA_FILE", "SSL_CERT_FILE")


async def readyz() -> dict[str, str]:
    return {"status": "ready"}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@contextlib.asynccontextmanager
async def secure_server(folder: Path) -> AsyncGenerator[str]:
    """The URL of a server whose authority is in ``ca.pem``."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with running(app_with(readyz=readyz), ssl_context=context) as server:
        yield server.urls[0]


async def test_an_authority_of_ones_own_is_trusted_where_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with secure_server(tmp_path) as url:
        context = trust_file(tmp_path / "ca.pem")
        async with Client(url, ssl_context=context) as pie:
            assert await pie.health() == "ready"
        for name in VARIABLES:
            with monkeypatch.context() as changed:
                changed.setenv(name, str(tmp_path / "ca.pem"))
                async with Client(url) as pie:
                    assert await pie.health() == "ready"


async def test_a_certificate_that_nobody_vouches_for_is_a_message(
    tmp_path: Path,
) -> None:
    async with secure_server(tmp_path) as url, Client(url) as pie:
        with pytest.raises(UnreachableError, match="--ca-file or PIE_CA_FILE"):
            await pie.health()


async def test_a_name_that_the_certificate_lacks_is_a_message(tmp_path: Path) -> None:
    async with secure_server(tmp_path) as url:
        other = url.replace("127.0.0.1", "localhost")
        context = trust_file(tmp_path / "ca.pem")
        async with Client(other, ssl_context=context) as pie:
            with pytest.raises(UnreachableError, match=r"mismatch.*localhost"):
                await pie.health()


async def test_a_server_without_tls_is_a_message() -> None:
    async with running(app_with(readyz=readyz)) as server:
        url = server.urls[0].replace("http://", "https://")
        async with Client(url) as pie:
            with pytest.raises(UnreachableError, match="speaks no TLS: say http://"):
                await pie.health()


async def test_http_to_a_server_with_tls_is_a_message(tmp_path: Path) -> None:
    async with secure_server(tmp_path) as url:
        async with Client(url.replace("https://", "http://")) as pie:
            with pytest.raises(Exception, match="this port speaks TLS"):
                await pie.health()


def test_a_file_that_holds_no_certificates_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").write_text("no PEM")
    with pytest.raises(ConfigError, match="text holds no certificates: expected PEM"):
        trust_file(tmp_path / "text")
    with pytest.raises(ConfigError, match=r"cannot read the certificates in .*none"):
        trust_file(tmp_path / "none")
    monkeypatch.setenv("PIE_CA_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="PIE_CA_FILE"):
        Client("https://localhost")
    Client("http://localhost")  # which needs none


@pytest.mark.parametrize("user", ["", " ", "a\nb", "ä"])
def test_what_is_no_name_for_a_user_is_not_sent(user: str) -> None:
    with pytest.raises(ConfigError, match="is no name for a user"):
        Client("http://localhost", user=user)
