"""Requests to other servers, which the host makes where that is granted."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from inferlet_py._checkpoints import checkpoint_if_cancelled
from inferlet_py._host import RequestValues, get_host
from inferlet_py._tasks import wait_ticket

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "NOTHING",
    "HttpResponse",
    "http_get",
    "http_post",
    "http_request",
    "make_request",
]

NOTHING: Final = object()
"""No JSON was given, not even ``null``."""


@dataclass(frozen=True)
class HttpResponse:
    """What a server answered; any status is an answer.

    Attributes:
        status: 200 to 599.
        headers: In order, names in lower case.
        body: As it was sent: nothing is decompressed.
        url: Where it came from, after redirects.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    url: str

    @property
    def is_success(self) -> bool:
        """Whether the status is from 200 to 299."""
        return 200 <= self.status < 300

    def header(self, name: str) -> str | None:
        """Return the first value of a header; None without one."""
        wanted = name.lower()
        return next((value for known, value in self.headers if known == wanted), None)

    def text(self, encoding: str | None = None) -> str:
        """Return the body as text; what cannot be decoded becomes U+FFFD.

        Args:
            encoding: None for what the server says, else UTF-8.
        """
        name = encoding or self._charset() or "utf-8"
        try:
            return self.body.decode(name, "replace")
        except LookupError:  # the server's word for something that Python does not know
            if encoding is not None:
                raise
            return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """Return what the body says as JSON.

        Raises:
            ValueError: It is no JSON.
        """
        return json_module.loads(self.body)

    def _charset(self) -> str:
        _, _, rest = (self.header("content-type") or "").lower().partition("charset=")
        return rest.partition(";")[0].strip(" \"'")


async def http_request(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    body: str | bytes = b"",
    json: Any = NOTHING,
    follow_redirects: bool = True,
) -> HttpResponse:
    """Make a request and return the answer, whatever its status.

    The server allows some 30 seconds; put it into ``fail_after`` for less. If it is cancelled,
    the other server may have done what was asked.

    Args:
        method: GET, HEAD, POST, PUT, PATCH or DELETE.
        url: With ``http://`` or ``https://``.
        headers: A mapping, or pairs.
        body: Text becomes UTF-8.
        json: What to send as JSON instead of a body.
        follow_redirects: Whether to go where the server redirects to; otherwise a redirect is
            an answer.

    Raises:
        ForbiddenError: The host is not granted; the message names the grant.
        FailedError: No complete answer came.
        BadArgumentError: The request cannot be sent as it is.
        LimitError: The request or its answer is too large.
    """
    await checkpoint_if_cancelled()
    host = get_host()
    ticket = host.http_request(
        make_request(method, url, headers, body, json, follow_redirects)
    )
    await wait_ticket(ticket)
    found = host.take_response(ticket)
    return HttpResponse(found.status, found.headers, found.body, found.url)


def make_request(
    method: str,
    url: str,
    headers: Mapping[str, str] | Iterable[tuple[str, str]],
    body: str | bytes,
    json: Any,
    follow_redirects: bool,
) -> RequestValues:
    """Return a request as the host takes it; ``json`` is ``NOTHING`` where there is none.

    Raises:
        TypeError: It has a body and JSON.
    """
    pairs = list(_pairs(headers))
    data = body.encode() if isinstance(body, str) else bytes(body)
    if json is not NOTHING:
        if data:
            raise TypeError("a request has a body or json, not both")
        data = json_module.dumps(json, ensure_ascii=False).encode()
        if not any(name.lower() == "content-type" for name, _ in pairs):
            pairs.append(("content-type", "application/json"))
    return RequestValues(method.upper(), url, pairs, data, None, follow_redirects)


def _pairs(
    headers: Mapping[str, str] | Iterable[tuple[str, str]],
) -> Iterable[tuple[str, str]]:
    if isinstance(headers, Mapping):
        return cast("Mapping[str, str]", headers).items()
    return headers


async def http_get(
    url: str,
    *,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    follow_redirects: bool = True,
) -> HttpResponse:
    """Make a GET request; see :func:`http_request`."""
    return await http_request(
        "GET", url, headers=headers, follow_redirects=follow_redirects
    )


async def http_post(
    url: str,
    body: str | bytes = b"",
    *,
    json: Any = NOTHING,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    follow_redirects: bool = True,
) -> HttpResponse:
    """Make a POST request; see :func:`http_request`."""
    return await http_request(
        "POST",
        url,
        headers=headers,
        body=body,
        json=json,
        follow_redirects=follow_redirects,
    )
