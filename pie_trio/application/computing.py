"""Accounts of CPU time: what guests may compute before they are held back.

An instance and its children have one account. What it lacks it takes from the account of its
owner: so neither many instances nor many children of one owner may compute for longer than one.
An instance earns a little with each step of the device that works for it, about twice of what a
decode loop needs between two steps: who keeps to that is never held back, whatever else its owner
runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Account", "Accounts"]

LAUNCH_SECONDS = 0.01
"""What an instance begins with: a launch takes a third of it."""

MAX_SECONDS = 0.05
"""Most that an instance keeps for later."""

OWNER_SECONDS = 0.1
"""Most that an owner keeps, and begins with: a text or two that take long to be parsed."""

STEP_SECONDS = 0.0005
"""What a step of the device earns."""


class _Owner:
    """What an owner has left.

    Attributes:
        turns_seconds: What its instances computed in turns of :class:`~.BackgroundShare`.
    """

    def __init__(self, rate: Callable[[], float]) -> None:
        """Begin; ``rate`` returns the part of a core at which it earns now."""
        self._rate = rate
        self._left = OWNER_SECONDS
        self._updated_at = trio.current_time()
        self._num_waiting = 0
        self.turns_seconds = 0.0

    def take(self, seconds: float) -> float:
        """Take what is there of so much, and return it."""
        self._earn()
        taken = min(self._left, seconds)
        self._left -= taken
        return taken

    def begin_waiting(self) -> None:
        """Note that an instance waits for its turn: meanwhile nothing is earned.

        Otherwise many that wait for each other would all earn at once.
        """
        self._earn()
        self._num_waiting += 1

    def end_waiting(self) -> None:
        """Note that it waits no more."""
        self._earn()
        self._num_waiting -= 1

    def _earn(self) -> None:
        now = trio.current_time()
        if not self._num_waiting:
            earned = (now - self._updated_at) * self._rate()
            self._left = min(OWNER_SECONDS, self._left + earned)
        self._updated_at = now


class Account:
    """What an instance and its children may compute. Made by :meth:`Accounts.open`.

    Attributes:
        used_seconds: CPU time that was charged, in all.
        turns_seconds: Of it, what was computed in turns of :class:`~.BackgroundShare`.
    """

    def __init__(self, owner: _Owner) -> None:
        self.owner = owner
        self.used_seconds = self.turns_seconds = 0.0
        self._left = LAUNCH_SECONDS

    @property
    def debt_seconds(self) -> float:
        """What was used beyond what there was; 0 if there is some left."""
        if self._left < 0:
            self._left += self.owner.take(-self._left)
        return max(0.0, -self._left)

    @property
    def is_overdrawn(self) -> bool:
        """Whether its instances are to wait for their turn."""
        return self._left < 0 and self.debt_seconds > 0

    def charge(self, seconds: float) -> None:
        """Count CPU time that was used."""
        self.used_seconds += seconds
        self._left -= seconds

    def earn(self, num_steps: int) -> None:
        """Count steps of the device that worked for one of its instances."""
        self._left = min(MAX_SECONDS, self._left + num_steps * STEP_SECONDS)

    def settle(self) -> float:
        """Return what is owed, and owe nothing: whoever calls this waits for as long."""
        debt = self.debt_seconds
        self._left = max(0.0, self._left)
        self.turns_seconds += debt
        self.owner.turns_seconds += debt
        return debt


class Accounts:
    """The accounts of a server.

    Args:
        share: Part of a core at which all owners together earn.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._owners: WeakValueDictionary[str, _Owner] = WeakValueDictionary()

    def open(self, owner: str) -> Account:
        """Return an account for an instance that has no parent."""
        found = self._owners.get(owner)
        if found is None:
            found = self._owners[owner] = _Owner(self._rate)
        return Account(found)

    def _rate(self) -> float:
        return self._share / max(1, len(self._owners))
