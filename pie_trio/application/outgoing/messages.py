"""A request as an inferlet makes it, and what is checked of it before anything is sent."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pie_trio._version import __version__
from pie_trio.errors import BadArgumentError, LimitError

__all__ = ["Header", "HttpLimits", "HttpRequest", "HttpResponse", "check_request"]

Header = tuple[str, str]

METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
USER_AGENT = f"pie-trio/{__version__}"

# They say where a message ends, or what becomes of its connection: these are the client's.
# Nothing is decompressed, so an inferlet may not ask for it unknowingly.
FORBIDDEN = frozenset(
    (
        *("accept-encoding", "connection", "content-length", "expect", "host"),
        *("http2-settings", "keep-alive", "te", "trailer", "transfer-encoding"),
        *("upgrade", "via"),
    )
)
FORBIDDEN_PREFIXES = ("proxy-",)

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e]*")


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What requests of one inferlet may take.

    Attributes:
        max_request_bytes: Of a request's body.
        max_response_bytes: Of an answer's body.
        max_header_bytes: Of all headers of a request, and of an answer.
        timeout_seconds: From the request to the last byte of its answer, with redirects.
        connect_seconds: For each address of a host that is tried.
        max_redirects: Followed for one request.
        max_concurrent: Requests at once; more wait, and that counts for their timeout.
        max_idle: Connections that are kept for the next request.
        idle_seconds: How long one is kept; servers close theirs after some seconds, too.
    """

    max_request_bytes: int = 8 << 20
    max_response_bytes: int = 8 << 20
    max_header_bytes: int = 64 << 10
    timeout_seconds: float = 30.0
    connect_seconds: float = 5.0
    max_redirects: int = 5
    max_concurrent: int = 16
    max_idle: int = 8
    idle_seconds: float = 4.0


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """What an inferlet asks for.

    Attributes:
        method: GET, HEAD, POST, PUT, PATCH or DELETE.
        url: Absolute.
        headers: In order; a name may occur several times.
        body: Sent with its length.
        timeout_seconds: Shortens the limit; None keeps it.
        follows_redirects: If not, an answer that is a redirect is returned as it is.
    """

    method: str
    url: str
    headers: tuple[Header, ...] = ()
    body: bytes = b""
    timeout_seconds: float | None = None
    follows_redirects: bool = True


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """What came back; any status is an answer.

    Attributes:
        status: 200 to 599.
        headers: In order, names in lower case, values as Latin-1.
        body: As it was sent: nothing is decompressed.
        url: Where it came from, after redirects.
        redirects: The URLs before that.
    """

    status: int
    headers: tuple[Header, ...]
    body: bytes
    url: str
    redirects: tuple[str, ...] = ()


def check_request(request: HttpRequest, limits: HttpLimits) -> list[Header]:
    """Return the headers to send, names in lower case.

    Raises:
        BadArgumentError: The method is not known, it has no body, the timeout is no time, or
            a header may not be set or has characters that no header may have.
        LimitError: The headers or the body are too large.
    """
    if request.method not in METHODS:
        raise BadArgumentError(
            f"the method {request.method!r} is not known: use one of {', '.join(METHODS)}"
        )
    if request.body and request.method in ("GET", "HEAD"):
        raise BadArgumentError(f"a {request.method} has no body: use POST or PUT")
    if request.timeout_seconds is not None and not request.timeout_seconds > 0:
        raise BadArgumentError(
            f"timeout_seconds is {request.timeout_seconds}: expected more than 0"
        )
    if len(request.body) > limits.max_request_bytes:
        raise LimitError(
            f"the body of a request has {len(request.body)} bytes, at most "
            f"{limits.max_request_bytes} are allowed"
        )
    headers = [_check_header(name, value) for name, value in request.headers]
    num_bytes = sum(len(name) + len(value) + 4 for name, value in headers)
    if num_bytes > limits.max_header_bytes:
        raise LimitError(
            f"the headers of a request have {num_bytes} bytes, at most "
            f"{limits.max_header_bytes} are allowed"
        )
    if not any(name == "user-agent" for name, _ in headers):
        headers.append(("user-agent", USER_AGENT))
    return headers


def _check_header(name: str, value: str) -> Header:
    if not _NAME.fullmatch(name):
        raise BadArgumentError(f"{name!r} is no name of a header")
    if not _VALUE.fullmatch(value):
        raise BadArgumentError(
            f"the header {name} has a character that is no printable ASCII: encode it"
        )
    name = name.lower()
    if name in FORBIDDEN or name.startswith(FORBIDDEN_PREFIXES):
        raise BadArgumentError(f"the header {name} is set by the server: leave it out")
    return name, value.strip(" \t")
