"""Who sends a request: the one place that decides it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pie_trio.errors import ForbiddenError

if TYPE_CHECKING:
    from quart.wrappers import Request, Websocket

__all__ = ["LOCAL", "Owner", "authenticate"]


@dataclass(frozen=True, slots=True)
class Owner:
    """On whose behalf something is done. Programs and instances belong to one.

    Attributes:
        name: Unique on the server.
    """

    name: str


LOCAL = Owner("local")
"""Whoever can reach a server without keys."""


def authenticate(request: Request | Websocket) -> Owner:
    """Return who sends a request. Every route asks here, and nowhere else.

    Raises:
        ForbiddenError: A page of another site sends it, with the rights of whoever looks at it.
    """
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise ForbiddenError(
            f"a page of {origin[:80]} may not use this server: send requests from a program, "
            "or from a page that this server's own address has served"
        )
    return LOCAL
