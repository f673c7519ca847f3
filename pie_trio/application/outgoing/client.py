"""The client through which one inferlet makes its requests."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Self

import trio

from pie_trio.application.outgoing.connection import NoAnswerError, connect
from pie_trio.application.outgoing.messages import (
    HttpLimits,
    HttpResponse,
    check_request,
)
from pie_trio.application.outgoing.urls import join_url, parse_url
from pie_trio.errors import BadArgumentError, HttpDeniedError, HttpFailedError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from pie_trio.application.outgoing.connection import (
        Answer,
        Connection,
        OnHead,
        Write,
    )
    from pie_trio.application.outgoing.messages import Header, HttpRequest
    from pie_trio.application.outgoing.policy import HttpPolicy
    from pie_trio.application.outgoing.urls import Url

__all__ = ["HttpClient"]

REDIRECTS = (301, 302, 303, 307, 308)
CREDENTIALS = frozenset(("authorization", "cookie"))
IDEMPOTENT = ("DELETE", "GET", "HEAD", "PUT")


class HttpClient:
    """Makes requests within the grants of one inferlet.

    Its connections are its own: what one inferlet has opened, and perhaps logged in on, no
    other one uses. Proxies, cookies and credentials of the server's environment are not
    used. As a context manager it closes its idle connections in the end; requests must have
    ended by then.

    Args:
        policy: What may be reached.
        ssl_context: From :func:`make_ssl_context`, one for the server.
        limits: None for the defaults.
    """

    def __init__(
        self,
        policy: HttpPolicy,
        *,
        ssl_context: ssl.SSLContext,
        limits: HttpLimits | None = None,
    ) -> None:
        self.policy = policy
        self.limits = limits or HttpLimits()
        self._ssl_context = ssl_context
        self._turns = trio.Semaphore(self.limits.max_concurrent)
        self._idle: list[tuple[Connection, float]] = []  # and since when, oldest first
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def num_idle(self) -> int:
        """How many connections are kept for later requests."""
        return len(self._idle)

    def close(self) -> None:
        """Close the idle connections; no more are kept."""
        self._is_closed = True
        for connection, _ in self._idle:
            connection.close()
        self._idle.clear()

    async def request(self, request: HttpRequest) -> HttpResponse:
        """Make a request, follow its redirects, and return the answer, whatever its status.

        Each redirect is checked as the request was. ``Authorization`` and ``Cookie`` are not
        sent to another origin; a redirect from ``https`` to ``http`` is not followed. When
        cancelled, the connection is closed; the server may have done what was asked.

        Raises:
            BadArgumentError: The request cannot be sent as it is.
            LimitError: It is too large.
            HttpDeniedError: It, or one of its redirects, goes where the inferlet may not.
            HttpFailedError: No complete answer came, in time and within the limits.
        """
        headers = check_request(request, self.limits)
        url = parse_url(request.url)
        self.policy.check(url)
        seconds = self.limits.timeout_seconds
        if request.timeout_seconds is not None:
            seconds = min(seconds, request.timeout_seconds)
        with trio.move_on_after(seconds):
            async with self._turns:
                return await self._follow(request, url, headers)
        raise HttpFailedError(
            f"{url.authority} gave no complete answer within {seconds:g} seconds"
        )

    async def stream(
        self, request: HttpRequest, on_head: Callable[[HttpResponse], Write]
    ) -> None:
        """Make a request, and hand on the body of its answer as it comes.

        As :meth:`request`, but the timeout is for the head, and then for each silence of the
        server; a body has no limit of size.

        Args:
            request: The request.
            on_head: Gets the answer without its body; returns what is awaited with each part.

        Raises:
            HttpFailedError: No answer came, or it ended too soon.
            InferletError: As of :meth:`request`.
        """
        headers = check_request(request, self.limits)
        url = parse_url(request.url)
        self.policy.check(url)
        seconds = self.limits.timeout_seconds
        if request.timeout_seconds is not None:
            seconds = min(seconds, request.timeout_seconds)
        with trio.move_on_after(seconds) as scope:

            def begin(head: HttpResponse) -> Write:
                write = on_head(head)
                scope.deadline = trio.current_time() + seconds

                async def hand_on(data: bytes) -> None:
                    scope.deadline = math.inf  # whoever reads may take its time
                    await write(data)
                    scope.deadline = trio.current_time() + seconds

                return hand_on

            async with self._turns:
                await self._follow(request, url, headers, begin)
                return
        raise HttpFailedError(f"{url.authority} sent nothing for {seconds:g} seconds")

    async def _follow(
        self,
        request: HttpRequest,
        url: Url,
        headers: Sequence[Header],
        begin: Callable[[HttpResponse], Write] | None = None,
    ) -> HttpResponse:
        method, body, visited = request.method, request.body, list[str]()
        while True:

            def look_at(answer: Answer, url: Url = url) -> Write | None:
                assert begin is not None, "else nobody looks"
                if request.follows_redirects and _redirect_target(url, answer):
                    return None
                head = HttpResponse(
                    answer.status, answer.headers, b"", str(url), tuple(visited)
                )
                return begin(head)

            on_head = None if begin is None else look_at
            answer = await self._exchange(method, url, headers, body, on_head)
            target = (
                _redirect_target(url, answer) if request.follows_redirects else None
            )
            if target is None:
                return HttpResponse(
                    answer.status, answer.headers, answer.body, str(url), tuple(visited)
                )
            visited.append(str(url))
            if len(visited) > self.limits.max_redirects:
                raise HttpFailedError(
                    f"{visited[0]} led to more than {self.limits.max_redirects} redirects"
                )
            self._check_redirect(url, target)
            if _becomes_get(method, answer.status):
                method, body = "GET", b""
                headers = [h for h in headers if not h[0].startswith("content-")]
            if target.origin != url.origin:
                headers = [h for h in headers if h[0] not in CREDENTIALS]
            url = target

    def _check_redirect(self, url: Url, target: Url) -> None:
        if (url.scheme, target.scheme) == ("https", "http"):
            raise HttpDeniedError(
                f"{url.authority} redirects to {target.scheme}://{target.authority}, which "
                "is not encrypted: make that request yourself if it may be read by others"
            )
        try:
            self.policy.check(target)
        except HttpDeniedError as error:
            raise HttpDeniedError(
                f"{url.authority} redirects, and {error}", grant=error.grant
            ) from None

    async def _exchange(
        self,
        method: str,
        url: Url,
        headers: Sequence[Header],
        body: bytes,
        on_head: OnHead | None,
    ) -> Answer:
        connection = self._take_idle(url) or await self._connect(url)
        try:
            return await connection.exchange(
                method, url, headers, body, on_head=on_head
            )
        except NoAnswerError:
            if connection.num_exchanges == 1 or method not in IDEMPOTENT:
                raise
        finally:
            self._give_back(connection)
        # The server closed the connection as we began to use it again.
        connection = await self._connect(url)
        try:
            return await connection.exchange(
                method, url, headers, body, on_head=on_head
            )
        finally:
            self._give_back(connection)

    async def _connect(self, url: Url) -> Connection:
        addresses = await self.policy.resolve(url)
        return await connect(
            url, addresses, limits=self.limits, ssl_context=self._ssl_context
        )

    def _take_idle(self, url: Url) -> Connection | None:
        """Return the connection to an origin that was used last, if one can still be used."""
        self._close_old()
        for index in reversed(range(len(self._idle))):
            connection, _ = self._idle[index]
            if connection.origin == url.origin:
                del self._idle[index]
                if connection.is_quiet:
                    return connection
                connection.close()
        return None

    def _give_back(self, connection: Connection) -> None:
        if not connection.is_reusable or self._is_closed:
            connection.close()
            return
        self._idle.append((connection, trio.current_time()))
        self._close_old()

    def _close_old(self) -> None:
        """Close idle connections beyond the limits; what is oldest comes first."""
        oldest = trio.current_time() - self.limits.idle_seconds
        while self._idle and (
            len(self._idle) > self.limits.max_idle or self._idle[0][1] < oldest
        ):
            self._idle.pop(0)[0].close()


def _redirect_target(url: Url, answer: Answer) -> Url | None:
    """Return where an answer leads to, None if it is no redirect."""
    locations = [value for name, value in answer.headers if name == "location"]
    if answer.status not in REDIRECTS or not locations:
        return None
    try:
        # Headers are read as Latin-1; a URL that is not ASCII is UTF-8 nowadays.
        location = locations[0].encode("latin-1").decode(errors="replace")
        return join_url(url, location)
    except BadArgumentError as error:
        raise HttpFailedError(
            f"{url.authority} redirects to what cannot be requested: {error}"
        ) from error


def _becomes_get(method: str, status: int) -> bool:
    """Say whether a redirect asks for a page instead of the same request again (RFC 9110)."""
    if status == 303:
        return method not in ("GET", "HEAD")
    return status in (301, 302) and method == "POST"
