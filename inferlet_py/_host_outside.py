"""``store.wit`` and ``http.wit`` as the SDK sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from inferlet_py._binding import HostInterface

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inferlet_py._binding import Adapters

__all__ = [
    "HTTP",
    "STORE",
    "HeadValues",
    "HttpHost",
    "RequestValues",
    "ResponseValues",
    "StoreHost",
]


class StoreHost(Protocol):
    """The key-value store of the owner; see ``store.wit``."""

    def store_get(self, key: str) -> int: ...
    def store_set(self, key: str, value: bytes) -> int: ...
    def store_delete(self, key: str) -> int: ...
    def store_exists(self, key: str) -> int: ...
    def store_list_keys(self, prefix: str, after: str, limit: int) -> int: ...
    def take_value(self, ticket: int) -> bytes | None: ...
    def take_flag(self, ticket: int) -> bool: ...
    def take_keys(self, ticket: int) -> list[str]: ...


@dataclass(frozen=True)
class RequestValues:
    """A request; see ``http.wit``."""

    method: str
    url: str
    headers: Sequence[tuple[str, str]]
    body: bytes
    timeout: float | None
    follow_redirects: bool


@dataclass(frozen=True)
class ResponseValues:
    """An answer; see ``http.wit``."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    url: str


@dataclass(frozen=True)
class HeadValues:
    """An answer without its body; see ``http.wit``."""

    status: int
    headers: tuple[tuple[str, str], ...]
    url: str


class HttpHost(Protocol):
    """Requests to other servers; see ``http.wit``."""

    def http_request(self, request: RequestValues) -> int: ...
    def http_get(self, url: str) -> int: ...
    def http_post(self, url: str, content_type: str, body: bytes) -> int: ...
    def take_response(self, ticket: int) -> ResponseValues: ...
    def open_http(self, body: int, request: RequestValues) -> int: ...
    def take_head(self, ticket: int) -> HeadValues: ...
    def read_body(self, body: int) -> int: ...
    def take_body(self, ticket: int) -> bytes | None: ...
    def close_body(self, body: int) -> None: ...


def _adapt_store(store: Any) -> Adapters:
    def take_value(ticket: int) -> bytes | None:
        value = store.take_value(ticket)
        return None if value is None else bytes(value)

    return {"take_value": take_value}


def _adapt_http(http: Any) -> Adapters:
    def make(request: RequestValues) -> Any:
        return http.HttpRequestData(
            request.method,
            request.url,
            list(request.headers),
            request.body,
            request.timeout,
            request.follow_redirects,
        )

    def http_request(request: RequestValues) -> int:
        ticket: int = http.http_request(make(request))
        return ticket

    def open_http(body: int, request: RequestValues) -> int:
        ticket: int = http.open_http(body, make(request))
        return ticket

    def take_head(ticket: int) -> HeadValues:
        found = http.take_head(ticket)
        headers = tuple((name, value) for name, value in found.headers)
        return HeadValues(found.status, headers, found.url)

    def take_body(ticket: int) -> bytes | None:
        data = http.take_body(ticket)
        return None if data is None else bytes(data)

    def take_response(ticket: int) -> ResponseValues:
        found = http.take_response(ticket)
        headers = tuple((name, value) for name, value in found.headers)
        return ResponseValues(found.status, headers, bytes(found.body), found.url)

    return {
        "http_request": http_request,
        "take_response": take_response,
        "open_http": open_http,
        "take_head": take_head,
        "take_body": take_body,
    }


STORE = HostInterface("store", StoreHost, _adapt_store)
HTTP = HostInterface("http", HttpHost, _adapt_http)
