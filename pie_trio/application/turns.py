"""Turns of owners: who asks for much of what is made one after the other waits for itself."""

from __future__ import annotations

from weakref import WeakValueDictionary

import trio

__all__ = ["OwnerTurns"]


class OwnerTurns:
    """A turn for each owner.

    Threads that work for all take who comes first. With a turn of its own, an owner has one
    piece of work among those, however many it wants, and others wait for that one alone.
    """

    def __init__(self) -> None:
        self._by_owner: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()

    def of(self, owner: str) -> trio.Lock:
        """Return the turn of an owner; first come, first served among its inferlets."""
        found = self._by_owner.get(owner)
        if found is None:
            found = self._by_owner[owner] = trio.Lock()
        return found
