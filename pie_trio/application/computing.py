"""Accounts of CPU time: what guests may compute before they are held back.

An instance and its children have one account. What it lacks it takes from the account of its
owner: so neither many instances nor many children of one owner may compute for longer than one.
An instance earns a little with each step of the device that works for it, about twice of what a
decode loop needs between two steps: who keeps to that is never held back, whatever else its owner
runs. Who computes more than that between steps is held back for the sake of those who do not, and
for nobody else's.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary, ref

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Account", "Accounts"]

LAUNCH_SECONDS = 0.01
"""What an instance begins with: a launch takes a third of it."""

CHILD_SECONDS = 0.005
"""What each of its first :data:`MAX_CHILDREN` children adds: about what its launch takes."""

MAX_CHILDREN = 8

MAX_SECONDS = 0.05
"""Most that an instance keeps for later."""

OWNER_SECONDS = 0.1
"""Most that an owner keeps, and begins with: a text or two that take long to be parsed."""

STEP_SECONDS = 0.0005
"""What a step of the device earns."""

WORK_SECONDS = 0.25
"""For so long after a step an instance counts as at work for the model."""


class _AtWork:
    """Who was at work lately, and has not used more than it had: the latest two of them."""

    def __init__(self) -> None:
        self._latest: ref[Account] | None = None  # it may have ended
        self._latest_at = self._other_at = -inf

    def note(self, account: Account, now: float) -> None:
        """Note that this one is at work."""
        if not self._is_latest(account):
            self._latest, self._other_at = ref(account), self._latest_at
        self._latest_at = now

    def is_another(self, account: Account, since: float) -> bool:
        """Say whether anybody but this one was at work since then."""
        at = self._other_at if self._is_latest(account) else self._latest_at
        return at > since

    def _is_latest(self, account: Account) -> bool:
        return self._latest is not None and self._latest() is account


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

    def __init__(self, owner: _Owner, at_work: _AtWork) -> None:
        self.owner = owner
        self.used_seconds = self.turns_seconds = 0.0
        self._at_work = at_work
        self._worked_at = self._settled_at = -inf
        self._num_children = 0
        self._left = LAUNCH_SECONDS

    @property
    def is_at_work(self) -> bool:
        """Whether the device has worked for one of its instances lately."""
        return self._worked_at > trio.current_time() - WORK_SECONDS

    @property
    def has_neighbours(self) -> bool:
        """Whether others are at work for the model, and keep to what they earn."""
        since = trio.current_time() - WORK_SECONDS
        return self._at_work.is_another(self, since)

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
        self._worked_at = now = trio.current_time()
        if self._left >= 0 and self._settled_at <= now - WORK_SECONDS:
            self._at_work.note(self, now)

    def add_child(self) -> None:
        """Count the launch of a child. Only the first ones bring something: see above."""
        if self._num_children < MAX_CHILDREN:
            self._num_children += 1
            self._left = min(MAX_SECONDS, self._left + CHILD_SECONDS)

    def settle(self) -> float:
        """Return what is owed, and owe nothing: whoever calls this waits for as long."""
        debt = self.debt_seconds
        if debt:
            self._settled_at = trio.current_time()
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
        self._at_work = _AtWork()

    def open(self, owner: str) -> Account:
        """Return an account for an instance that has no parent."""
        found = self._owners.get(owner)
        if found is None:
            found = self._owners[owner] = _Owner(self._rate)
        return Account(found, self._at_work)

    def _rate(self) -> float:
        return self._share / max(1, len(self._owners))
