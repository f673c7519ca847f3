"""Answers of other servers that are read as they come."""

from __future__ import annotations

import codecs
import itertools
from collections import deque
from typing import TYPE_CHECKING, Any

from inferlet_py._checkpoints import checkpoint_if_cancelled
from inferlet_py._closing import AsyncCloses
from inferlet_py._host import get_host
from inferlet_py._http import NOTHING, HttpResponse, make_request
from inferlet_py._sse import EventReader
from inferlet_py._tasks import wait_ticket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from inferlet_py._host import RequestValues
    from inferlet_py._sse import ServerSentEvent

__all__ = ["HttpStream", "http_stream"]

_numbers = itertools.count(1)


class HttpStream(AsyncCloses):
    """An answer whose body comes in parts. Made by :func:`http_stream`; iterate over the parts.

    Attributes:
        head: The answer without its body.
    """

    def __init__(self, request: RequestValues) -> None:
        self.head = HttpResponse(0, (), b"", request.url)
        self._request = request
        self._number = 0  # of the body, while it is open

    async def __aenter__(self) -> HttpStream:
        await checkpoint_if_cancelled()
        host = get_host()
        number = next(_numbers)
        ticket = host.open_http(number, self._request)
        self._number = number
        try:
            await wait_ticket(ticket)
            found = host.take_head(ticket)
        except BaseException:
            self.close()
            raise
        self.head = HttpResponse(found.status, found.headers, b"", found.url)
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._number:
            raise StopAsyncIteration
        host = get_host()
        ticket = host.read_body(self._number)
        await wait_ticket(ticket)
        data = host.take_body(ticket)
        if data is None:
            self.close()
            raise StopAsyncIteration
        return data

    @property
    def status(self) -> int:
        """200 to 599."""
        return self.head.status

    def close(self) -> None:
        """Give up what has not come yet. Leaving the block does so too."""
        number, self._number = self._number, 0
        if number:
            get_host().close_body(number)

    async def read(self) -> bytes:
        """Return all that is still to come."""
        return b"".join([data async for data in self])

    def events(self) -> AsyncIterator[ServerSentEvent]:
        """Iterate over the server-sent events in the body."""
        return _Events(self)

    def lines(self) -> AsyncIterator[str]:
        """Iterate over the lines of the body, as UTF-8 and without their ends."""
        return _Lines(self)


class _Events:
    def __init__(self, stream: HttpStream) -> None:
        self._stream, self._reader = stream, EventReader()
        self._waiting: deque[ServerSentEvent] = deque()

    def __aiter__(self) -> AsyncIterator[ServerSentEvent]:
        return self

    async def __anext__(self) -> ServerSentEvent:
        while not self._waiting:
            self._waiting.extend(self._reader.add(await anext(self._stream)))
        return self._waiting.popleft()


class _Lines:
    def __init__(self, stream: HttpStream) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._waiting: deque[str] = deque()
        self._rest = ""
        self._has_ended = False

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        while not self._waiting:
            if self._has_ended:
                raise StopAsyncIteration
            try:
                text = self._decoder.decode(await anext(self._stream))
            except StopAsyncIteration:
                self._has_ended = True
                rest = self._rest + self._decoder.decode(b"", True)
                self._waiting.extend([rest.removesuffix("\r")] if rest else [])
                continue
            *lines, self._rest = (self._rest + text).split("\n")
            self._waiting.extend(line.removesuffix("\r") for line in lines)
        return self._waiting.popleft()


def http_stream(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    body: str | bytes = b"",
    json: Any = NOTHING,
    follow_redirects: bool = True,
) -> HttpStream:
    """Make a request, and read the body of its answer as it comes.

    ``async with http_stream("GET", url) as answer``: the block begins once the head is there. The
    server allows some 30 seconds for the head of the answer, and then for each silence. Up to
    256 KiB wait to be read; what comes after that waits at the other server.

    Args:
        method: GET, HEAD, POST, PUT, PATCH or DELETE.
        url: With ``http://`` or ``https://``.
        headers: A mapping, or pairs.
        body: Text becomes UTF-8.
        json: What to send as JSON instead of a body.
        follow_redirects: Whether to go where the server redirects to.

    Raises:
        ForbiddenError: The host is not granted; the message names the grant.
        FailedError: No answer came; or, while it is read, it ended too soon.
        BadArgumentError: The request cannot be sent as it is.
        LimitError: The request is too large, or too many bodies are open.
    """
    return HttpStream(make_request(method, url, headers, body, json, follow_redirects))
