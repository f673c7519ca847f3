"""``http.wit``: requests to the hosts that the instance was granted."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pie_trio.application.host.http_bodies import BodyTable
from pie_trio.application.host.interface import fallible, interface, waiting
from pie_trio.application.host.receiving import (
    Answer,
    open_receive,
    start_request,
    take_answer,
)
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
    Unit,
)
from pie_trio.errors import InferletError, UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pie_trio.application.host.session import Session
    from pie_trio.application.outgoing.connection import Write
    from pie_trio.application.waiting import Waiting

__all__ = ["INTERFACE", "Http"]

logger = logging.getLogger(__name__)

KIND = "take-response"
HEAD_KIND, BODY_KIND = "take-head", "take-body"
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
HEAD = Record(status=U32, headers=HEADERS, url=STRING)


class Http:
    """What a session keeps for this interface: its client, once it has made a request.

    Attributes:
        bodies: That are read as they come.
    """

    def __init__(self) -> None:
        self._client: HttpClient | None = None
        self.bodies = BodyTable()

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
    return _start(session, _lift(request))


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


def open_http(session: Session, number: int, request: tuple[Any, ...]) -> int:
    """Make a request whose body is read as it comes; return a ticket for its head."""
    if session.services.get_ssl_context is None:
        raise UnsupportedError("this server makes no requests")
    lifted = _lift(request)
    session.tasks.check()
    session.tickets.check_room()
    _check_room(session, lifted)
    body = session.http.bodies.add(number)
    # A ticket that is cancelled gives the request up; one that is taken does not.
    ticket = session.tickets.open(lambda: body.cancel())

    has_begun = False

    def begin(head: HttpResponse) -> Write:
        nonlocal has_begun
        has_begun = True
        session.tickets.complete(ticket, Answer(HEAD_KIND, lambda: head))
        return put

    async def put(data: bytes) -> None:
        totals = session.tree.totals
        totals.check("http_bytes", len(data))
        totals.add("http_bytes", len(data))
        await body.put(data)

    async def work() -> None:
        error: InferletError | None = None
        try:
            client = await session.http.get_client(session)
            await client.stream(lifted, begin)
        except InferletError as found:
            error = found
        except Exception:
            logger.exception("%s: a request failed", session.launch.instance_id)
            error = InferletError("the server failed at a request: its log says why")
        finally:
            session.share.give("http_requests")
            if error is not None and not has_begun:
                session.tickets.complete(ticket, error)
            body.end(error)

    scope = session.tasks.start(work)
    _count(session, lifted)
    body.cancel = scope.cancel
    return ticket


def take_head(session: Session, ticket: int) -> tuple[Any, ...] | Waiting:
    """Wait for the head of an answer and return the record ``http-head``."""
    return take_answer(
        session,
        HEAD_KIND,
        ticket,
        lambda head: (head.status, list(head.headers), head.url),
    )


def read_body(session: Session, number: int) -> int:
    """Return a ticket for what comes next of a body."""
    return open_receive(session, BODY_KIND, session.http.bodies.get(number).receive)


def take_body(session: Session, ticket: int) -> bytes | Waiting | None:
    """Wait for a part of a body and return it; None at its end."""
    return take_answer(session, BODY_KIND, ticket, _lower_part)


def close_body(session: Session, number: int) -> None:
    """Forget a body; what has not come does not come any more."""
    session.http.bodies.close(number)


def _lower_part(part: bytes | InferletError | None) -> bytes | None:
    if isinstance(part, InferletError):
        raise part
    return part


def _lift(request: tuple[Any, ...]) -> HttpRequest:
    method, url, headers, body, timeout, follows_redirects = request
    return HttpRequest(
        method,
        url,
        tuple((name, value) for name, value in headers),
        body.tobytes(),
        timeout,
        follows_redirects,
    )


def _start(session: Session, request: HttpRequest) -> int:
    if session.services.get_ssl_context is None:
        raise UnsupportedError("this server makes no requests")

    async def work() -> HttpResponse:
        try:
            client = await session.http.get_client(session)
            response = await client.request(request)
            session.tree.totals.add("http_bytes", _size_of(response))
            return response
        finally:
            session.share.give("http_requests")

    _check_room(session, request)
    ticket = start_request(
        session, KIND, work, num_bytes=len(request.body), size_of=_size_of
    )
    _count(session, request)
    return ticket


def _check_room(session: Session, request: HttpRequest) -> None:
    """Raise unless one more request may be made.

    Raises:
        LimitError: There are too many at once, or there were in all, or too many bytes.
    """
    totals = session.tree.totals
    totals.check("http_requests")
    totals.check("http_bytes", len(request.body))
    session.share.check("http_requests", 1)


def _count(session: Session, request: HttpRequest) -> None:
    """Count a request as one that is made, until its share is given back."""
    session.share.take("http_requests")
    session.tree.totals.add("http_requests")
    session.tree.totals.add("http_bytes", len(request.body))


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
        "open-http": fallible(open_http, U32, U32, REQUEST),
        "take-head": waiting(take_head, HEAD, U32),
        "read-body": fallible(read_body, U32, U32),
        "take-body": waiting(take_body, Option(Array(U8)), U32),
        "close-body": fallible(close_body, Unit(), U32),
    },
    types={
        "http-request-data": REQUEST,
        "http-response": RESPONSE,
        "http-head": HEAD,
    },
)
