"""Whose certificates a client trusts, and what it says where there is no trust."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["explain_tls", "trust_file", "trust_usual"]

NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")
"""What OpenSSL calls an answer that is none of TLS, from version to version."""


def trust_usual() -> ssl.SSLContext | Literal[True]:
    """Return the trust in ``$PIE_CA_FILE``, else ``$SSL_CERT_FILE``; True for the system's.

    Raises:
        ConfigError: The file cannot be used.
    """
    named = os.environ.get("PIE_CA_FILE") or os.environ.get("SSL_CERT_FILE")
    return trust_file(Path(named)) if named else True


def trust_file(path: Path) -> ssl.SSLContext:
    """Return the trust in what the certificates of a file have signed, and in no other.

    Raises:
        ConfigError: The file cannot be read, or has no certificates in PEM.
    """
    try:
        return ssl.create_default_context(cafile=path)
    except ssl.SSLError as error:
        raise ConfigError(
            f"{path} holds no certificates: expected PEM, see --ca-file, PIE_CA_FILE and "
            "SSL_CERT_FILE"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"cannot read the certificates in {path}: {error.strerror}: see --ca-file, "
            "PIE_CA_FILE and SSL_CERT_FILE"
        ) from error


def explain_tls(url: str, error: BaseException) -> str:
    """Return what went wrong with TLS and what to do; empty if it was something else.

    Args:
        url: Of the server.
        error: Of the connection.
    """
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"the certificate of {url} is not to be trusted ({cause.verify_message}): if an "
                "authority of your own signed it, give that one's with --ca-file or PIE_CA_FILE"
            )
        if isinstance(cause, ssl.SSLError) and cause.reason in NOT_TLS:
            return (
                f"what answers at {url} speaks no TLS: say http://, or start the server with "
                "--tls-cert and --tls-key"
            )
    return ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
