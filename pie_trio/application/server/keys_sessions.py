"""Logins of browsers: a token in a cookie stands for a key, in the memory of the server."""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["COOKIE", "LOGIN_SECONDS", "Sessions"]

COOKIE = "pie_session"
LOGIN_SECONDS = 12 * 3600
MAX_SESSIONS = 1024
"""The oldest goes first. Only who has a key can open one."""


class Sessions:
    """The logins of a server. They end with it; the key itself never lies in a browser.

    Args:
        now: The time in seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        # By the hash of the token: looking one up takes a time that says nothing of the others.
        self._found: dict[bytes, tuple[str, float]] = {}

    def open(self, key_id: str) -> str:
        """Return a token that stands for a key for :data:`LOGIN_SECONDS`."""
        token = secrets.token_urlsafe(32)
        self._found[_digest(token)] = key_id, self._now() + LOGIN_SECONDS
        while len(self._found) > MAX_SESSIONS:
            del self._found[next(iter(self._found))]
        return token

    def find(self, token: str) -> str | None:
        """Return the id of the key that a token stands for; None if it does for none."""
        key_id, ends_at = self._found.get(_digest(token), (None, 0.0))
        return key_id if self._now() < ends_at else None

    def close(self, token: str) -> None:
        """Forget a token; nothing if it is none."""
        self._found.pop(_digest(token), None)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
