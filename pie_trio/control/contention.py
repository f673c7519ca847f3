"""What to do when a command needs more pages than are free: policies on plain data.

The default ladder: drop cached exports that nobody uses; tell the inferlets and give them a
moment; move the pages of the newest to host memory; and only then end it. What one inferlet alone
has beyond the device's memory is in host memory but for what its next command needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pie_trio.control.tenants import Tenant

__all__ = [
    "ContentionPolicy",
    "Evict",
    "Fail",
    "Fcfs",
    "Holding",
    "Ladder",
    "Reclaim",
    "Relief",
    "Shortage",
    "SignalPressure",
    "Suspend",
    "SwapOwn",
    "Wait",
    "make_contention_policy",
]


@dataclass(frozen=True, slots=True)
class Holding:
    """What an inferlet has on the device.

    Attributes:
        num_pages: Pages that nobody else uses: what suspending it would free.
        idle_seconds: For how long no command of it could run; 0 if one can.
    """

    tenant: Tenant
    num_pages: int
    idle_seconds: float


@dataclass(frozen=True, slots=True)
class Shortage:
    """A command that cannot run. No older inferlet lacks pages.

    Attributes:
        requester: Whose it is.
        num_needed: Pages that it needs beyond those that it has.
        num_missing: Of them, those that are not free.
        num_attainable: Pages that the requester could have beyond its own if it were alone.
        num_own_idle: Pages that nobody else uses and the command does not need, of the
            requester.
        num_reclaimable: Pages of exports that nobody uses.
        holdings: Of all inferlets with pages on the device, oldest first.
        pressure_seconds: Since the inferlets were told; None if they were not.
        num_swap_free: Pages that host memory has room for.
        is_progressing: Some command can run now.
    """

    requester: Tenant
    num_needed: int
    num_missing: int
    num_attainable: int
    num_own_idle: int
    num_reclaimable: int
    holdings: Sequence[Holding]
    pressure_seconds: float | None
    num_swap_free: int
    is_progressing: bool

    @property
    def can_never_fit(self) -> bool:
        """Whether it would not run even alone; what runs now may still give pages back."""
        return self.num_needed > self.num_attainable and not self.is_progressing

    @property
    def fits_with_swap(self) -> bool:
        """Whether it would run alone if what else the requester has were in host memory."""
        num_own = min(self.num_own_idle, self.num_swap_free)
        return self.num_needed <= self.num_attainable + num_own

    @property
    def others(self) -> list[Holding]:
        """The holdings of everybody else, oldest first."""
        return [h for h in self.holdings if h.tenant is not self.requester]


@dataclass(frozen=True, slots=True)
class Reclaim:
    """Drop exports that nobody uses, oldest first."""

    num_pages: int


@dataclass(frozen=True, slots=True)
class SignalPressure:
    """Tell the inferlets that pages are short."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again after this time, or when something has changed."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Suspend:
    """Move the pages of an inferlet to host memory."""

    tenant: Tenant


@dataclass(frozen=True, slots=True)
class SwapOwn:
    """Move pages of the requester that the command does not need to host memory."""

    num_pages: int


@dataclass(frozen=True, slots=True)
class Evict:
    """End an inferlet."""

    tenant: Tenant


@dataclass(frozen=True, slots=True)
class Fail:
    """Fail the command: it can never run."""


Relief = Reclaim | SignalPressure | Wait | Suspend | SwapOwn | Evict | Fail


class ContentionPolicy(Protocol):
    """Says what to do next about a shortage; asked again after each step that it names."""

    def relieve(self, shortage: Shortage) -> Relief:
        """Return the next thing to do."""
        ...


RETRY_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Ladder:
    """Reclaim, tell, suspend, end; whoever came first goes first.

    Attributes:
        grace_seconds: How long inferlets have to give pages back by themselves.
        idle_seconds: An older inferlet that could not run for so long is suspended too: it
            waits for its client, or for the inferlet that lacks pages. One that decodes is
            idle between its steps as well, which is shorter.
    """

    grace_seconds: float = 0.05
    idle_seconds: float = 0.25

    def relieve(self, shortage: Shortage) -> Relief:
        """See :class:`ContentionPolicy`."""
        if shortage.can_never_fit and not shortage.fits_with_swap:
            return Fail()
        if shortage.num_reclaimable and not shortage.can_never_fit:
            return Reclaim(shortage.num_missing)
        others = shortage.others
        if any(holding.tenant.is_evicted for holding in others):
            return Wait(RETRY_SECONDS)  # its pages are about to come back
        if shortage.pressure_seconds is None:
            return SignalPressure()
        if shortage.pressure_seconds < self.grace_seconds:
            return Wait(self.grace_seconds - shortage.pressure_seconds)
        if shortage.can_never_fit:
            return SwapOwn(shortage.num_needed - shortage.num_attainable)
        if not shortage.fits_with_swap:
            return Wait(RETRY_SECONDS)  # nobody is to make room for what will not run
        age = shortage.requester.age
        newer = [h for h in others if h.tenant.age > age]
        idle = [h for h in others if h.tenant.age < age and self._is_idle(h)]
        for victims in (newer, idle):
            for holding in reversed(victims):
                if 0 < holding.num_pages <= shortage.num_swap_free:
                    return Suspend(holding.tenant)
        if holders := [h for h in newer if h.num_pages]:
            return Evict(holders[-1].tenant)
        if shortage.is_progressing or any(not self._is_idle(h) for h in others):
            return Wait(RETRY_SECONDS)
        # Those that only share pages: to end one may free nothing, so it comes last.
        return Evict(newer[-1].tenant if newer else shortage.requester)

    def _is_idle(self, holding: Holding) -> bool:
        return holding.idle_seconds >= self.idle_seconds


@dataclass(frozen=True, slots=True)
class Fcfs:
    """The paper's: end the newest until there is room."""

    def relieve(self, shortage: Shortage) -> Relief:
        """See :class:`ContentionPolicy`."""
        if shortage.can_never_fit:
            return Fail()
        if shortage.num_reclaimable:
            return Reclaim(shortage.num_missing)
        tenants = [shortage.requester, *(h.tenant for h in shortage.holdings)]
        if any(tenant.is_evicted for tenant in tenants):
            return Wait(RETRY_SECONDS)
        if not shortage.others:
            return Wait(RETRY_SECONDS) if shortage.is_progressing else Fail()
        return Evict(max(tenants, key=lambda tenant: tenant.age))


def make_contention_policy(name: str) -> ContentionPolicy:
    """Return the policy of this name: ``ladder`` or ``fcfs``.

    Raises:
        ConfigError: There is no such policy.
    """
    policies: dict[str, Callable[[], ContentionPolicy]] = {
        "ladder": Ladder,
        "fcfs": Fcfs,
    }
    if name not in policies:
        raise ConfigError(
            f"there is no contention policy {name!r}: choose one of {', '.join(policies)}"
        )
    return policies[name]()
