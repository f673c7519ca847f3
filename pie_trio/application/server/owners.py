"""Who sends a request: the one place that decides it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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


def authenticate(_request: Request | Websocket) -> Owner:
    """Return who sends a request. Every route asks here, and nowhere else."""
    return LOCAL
