"""``http.wit``: requests to the hosts that the instance was granted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pie_trio.application.host.interface import fallible, interface, waiting
from pie_trio.application.host.receiving import start_request, take_answer
from pie_trio.application.outgoing import (
    HttpClient,
    HttpPolicy,
    HttpRequest,
    HttpResponse,
    parse_grant,
)
from pie_trio.application.wasm.values import (
    BOOL,
    F64,
    STRING,
    U8,
    U32,
    Array,
    List,
    Option,
    Record,
    Tuple,
)
from pie_trio.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pie_trio.application.host.session import Session
    from pie_trio.application.waiting import Waiting

__all__ = ["INTERFACE", "Http"]

KIND = "take-response"
HEADERS = List(Tuple(STRING, STRING))
REQUEST = Record(
    method=STRING,
    url=STRING,
    headers=HEADERS,
    body=Array(U8),
    timeout=Option(F64),
    follow_redirects=BOOL,
)
RESPONSE = Record(status=U32, headers=HEADERS, body=Array(U8), url=STRING)


class Http:
    """What a session keeps for this interface: its client, once it has made a request."""

    def __init__(self) -> None:
        self._client: HttpClient | None = None

    async def get_client(self, session: Session) -> HttpClient:
        """Return the instance's client, made at the first call."""
        services = session.services
        assert services.get_ssl_context is not None, "checked when the request was made"
        ssl_context = await services.get_ssl_context()
        if self._client is None:  # another request may have made it meanwhile
            grants = [parse_grant(text) for text in session.launch.grants.http]
            self._client = HttpClient(
                HttpPolicy(grants, lookup=services.outgoing.lookup),
                ssl_context=ssl_context,
                limits=services.outgoing.limits,
            )
        return self._client

    def close(self) -> None:
        """Close the connections that are idle; the requests have ended."""
        if self._client is not None:
            self._client.close()


def http_request(session: Session, request: tuple[Any, ...]) -> int:
    """Make a request, and return a ticket for its answer."""
    method, url, headers, body, timeout, follows_redirects = request
    return _start(
        session,
        HttpRequest(
            method,
            url,
            tuple((name, value) for name, value in headers),
            body.tobytes(),
            timeout,
            follows_redirects,
        ),
    )


def http_get(session: Session, url: str) -> int:
    """Make a GET request, and return a ticket for its answer."""
    return _start(session, HttpRequest("GET", url))


def http_post(
    session: Session, url: str, content_type: str, body: NDArray[np.uint8]
) -> int:
    """Make a POST request, and return a ticket for its answer."""
    headers = (("content-type", content_type),)
    return _start(session, HttpRequest("POST", url, headers, body.tobytes()))


def take_response(session: Session, ticket: int) -> tuple[Any, ...] | Waiting:
    """Wait for an answer and return the record ``http-response``."""
    return take_answer(session, KIND, ticket, _lower)


def _start(session: Session, request: HttpRequest) -> int:
    if session.services.get_ssl_context is None:
        raise UnsupportedError("this server makes no requests")

    async def work() -> HttpResponse:
        client = await session.http.get_client(session)
        return await client.request(request)

    return start_request(
        session, KIND, work, num_bytes=len(request.body), size_of=_size_of
    )


def _size_of(response: HttpResponse) -> int:
    num_bytes = sum(len(name) + len(value) for name, value in response.headers)
    return num_bytes + len(response.body)


def _lower(response: HttpResponse) -> tuple[Any, ...]:
    return response.status, list(response.headers), response.body, response.url


INTERFACE = interface(
    "http",
    {
        "http-request": fallible(http_request, U32, REQUEST),
        "http-get": fallible(http_get, U32, STRING),
        "http-post": fallible(http_post, U32, STRING, STRING, Array(U8)),
        "take-response": waiting(take_response, RESPONSE, U32),
    },
    types={"http-request-data": REQUEST, "http-response": RESPONSE},
)
