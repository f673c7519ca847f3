"""API keys: how they are made, read and recognized, and those of a running server."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from pie_trio.application.server.keys_tables import KeyTables

__all__ = ["SCOPES", "USER", "Key", "KeyRing", "Scope", "make_key"]

Scope = Literal["launch", "upload", "metrics", "admin"]
"""What a key may be for. ``admin`` includes all others."""
SCOPES: tuple[Scope, ...] = get_args(Scope)

# No slash: owners stand before one in the names of exports and topics.
USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_KEY = re.compile(r"pie_([0-9a-f]{8})_([0-9a-f]{64})")
SECRET_BYTES, ID_BYTES = 32, 4


@dataclass(frozen=True, slots=True)
class Key:
    """What is kept of a key. It cannot be made into the key again.

    Attributes:
        key_id: The part of it that is no secret, and names it.
        user: Whose it is.
        scopes: What it is for.
        limits: What the instances launched with it may use together: see
            :class:`~pie_trio.config.SharedLimits`; only those that it has.
        created_at: In seconds since 1970.
        digest: SHA-256 of the secret part.
    """

    key_id: str
    user: str
    scopes: frozenset[Scope]
    limits: Mapping[str, int]
    created_at: float
    digest: bytes = field(repr=False)


def make_key(
    user: str,
    scopes: Collection[Scope],
    *,
    limits: Mapping[str, int] | None = None,
    created_at: float,
) -> tuple[Key, str]:
    """Return a new key: what is kept of it, and the text that is shown once."""
    key_id, secret = secrets.token_hex(ID_BYTES), secrets.token_hex(SECRET_BYTES)
    found = frozenset(scopes)
    key = Key(key_id, user, found, dict(limits or {}), created_at, _digest(secret))
    return key, f"pie_{key_id}_{secret}"


def _digest(secret: str) -> bytes:
    # A slow hash, as for passwords, protects what people choose. These are 256 random bits:
    # nobody finds them by trying, so a fast hash is as safe, and costs a request nothing.
    return hashlib.sha256(secret.encode()).digest()


class KeyRing:
    """The keys of a running server, as they are on the disk at each moment.

    Args:
        tables: May be changed by other processes meanwhile. Stays open longer.
        now: The time in seconds.
    """

    def __init__(
        self, tables: KeyTables, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._tables, self._now = tables, now
        self._read_at = float("-inf")
        self._version = -1
        self._keys: dict[str, Key] = {}

    def __len__(self) -> int:
        self._refresh()
        return len(self._keys)

    def find(self, text: str) -> Key | None:
        """Return what is known of a key; None if it was never made, or is revoked.

        Raises:
            KeyStoreError: The keys cannot be read.
        """
        self._refresh()
        parts = _KEY.fullmatch(text)
        key = self._keys.get(parts[1]) if parts else None
        if parts is None or key is None:
            return None
        # In constant time: how long it takes says nothing of the secret.
        return key if hmac.compare_digest(_digest(parts[2]), key.digest) else None

    def get(self, key_id: str, *, max_age_seconds: float = 0.0) -> Key | None:
        """Return a key by its id; None if it was revoked.

        Args:
            key_id: Of it.
            max_age_seconds: So long it may have been revoked already: for those who ask often.

        Raises:
            KeyStoreError: The keys cannot be read.
        """
        if not max_age_seconds or self._now() - self._read_at > max_age_seconds:
            self._refresh()
        return self._keys.get(key_id)

    def _refresh(self) -> None:
        """Read the keys again if somebody has changed them; 20 microseconds if not."""
        version, self._read_at = self._tables.version(), self._now()
        if version != self._version:
            self._keys = {key.key_id: key for key in self._tables.all()}
            self._version = version
