"""What all inferlets of a user, and all of the server, may use together."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from pie_trio.config import SharedLimits
from pie_trio.errors import LimitError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["KeyLimits", "Quota", "Quotas", "Share"]

UNLIMITED = 1 << 63
NONE = SharedLimits(**dict.fromkeys(asdict(SharedLimits()), UNLIMITED))


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What the inferlets that were launched with one key may use together.

    Attributes:
        key_id: Names the key; it is no secret.
        limits: Those of the key. They add to those of its user, and lift none.
    """

    key_id: str
    limits: SharedLimits

    @classmethod
    def of(cls, key_id: str, limits: Mapping[str, int]) -> KeyLimits:
        """Return the limits of a key that has some of them, by kind, and of others none."""
        return cls(key_id, replace(NONE, **limits))


class Quota:
    """Counts what several inferlets use together.

    Args:
        name: What error messages call them, as ``the user ann``.
        limits: What they may use, by kind: see :class:`SharedLimits`.
    """

    def __init__(self, name: str, limits: SharedLimits) -> None:
        self.name = name
        self.limits: dict[str, int] = asdict(limits)
        self.used = dict.fromkeys(self.limits, 0)

    @property
    def is_idle(self) -> bool:
        """Nothing is used."""
        return not any(self.used.values())


class Share:
    """One inferlet's part in the quotas that it falls under."""

    def __init__(self, quotas: Sequence[Quota] = ()) -> None:
        self._quotas = quotas

    def check(self, kind: str, count: int) -> None:
        """Raise unless so many more may be taken.

        Raises:
            LimitError: It names who has reached what.
        """
        for quota in self._quotas:
            wanted = quota.used[kind] + count
            if wanted > quota.limits[kind]:
                raise LimitError(
                    f"{wanted} {kind.replace('_', ' ')} would be in use by the inferlets of "
                    f"{quota.name}, but {quota.limits[kind]} may be: try again when some have "
                    "ended, or have given some back"
                )

    def room(self, kind: str) -> int:
        """Return how many more may be taken; 2^63 where nothing limits them."""
        rooms = [q.limits[kind] - q.used[kind] for q in self._quotas]
        return max(0, min(rooms, default=UNLIMITED))

    def take(self, kind: str, count: int = 1) -> None:
        """Count more, which :meth:`check` let through."""
        for quota in self._quotas:
            quota.used[kind] += count

    def give(self, kind: str, count: int = 1) -> None:
        """Count less."""
        for quota in self._quotas:
            quota.used[kind] -= count
            assert quota.used[kind] >= 0, "nothing is given back twice"


class Quotas:
    """The quotas of a server and of its users.

    Attributes:
        users: Of each user for as long as an inferlet has a part in it, also while it uses
            nothing: or the next one would count for itself.
        keys: The same of each key that has limits of its own.
    """

    def __init__(self, server: SharedLimits, user: SharedLimits) -> None:
        self.server = Quota("the server", server)
        self.user_limits = user
        self.users: WeakValueDictionary[str, Quota] = WeakValueDictionary()
        self.keys: WeakValueDictionary[str, Quota] = WeakValueDictionary()

    def share_of(
        self, owner: str, key: KeyLimits | None = None, tree: Quota | None = None
    ) -> Share:
        """Return the part of an inferlet.

        Args:
            owner: On whose behalf it runs.
            key: With which it was launched, if that has limits of its own.
            tree: Of the inferlet that was launched first, with all below it.
        """
        above = () if tree is None else (tree,)
        quota = self.users.get(owner)
        if quota is None:
            quota = self.users[owner] = Quota(f"the user {owner}", self.user_limits)
        if key is None:
            return Share((*above, quota, self.server))
        of_key = self.keys.get(key.key_id)
        if of_key is None:
            of_key = self.keys[key.key_id] = Quota(f"the key {key.key_id}", key.limits)
        return Share((*above, of_key, quota, self.server))
