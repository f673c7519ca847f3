"""Carries out what the contention policy decides: tells, moves pages, ends inferlets."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import trio

from pie_trio.control.contention import (
    Evict,
    Holding,
    Reclaim,
    Shortage,
    SignalPressure,
    Suspend,
    SwapOwn,
    make_contention_policy,
)
from pie_trio.errors import EngineError, EngineLostError, OutOfPagesError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from pie_trio.config import ControlConfig
    from pie_trio.control.choosing import Choice
    from pie_trio.control.commands import Command
    from pie_trio.control.contention import Relief
    from pie_trio.control.device_thread import Device
    from pie_trio.control.pages import PagePool
    from pie_trio.control.tenants import Tenant
    from pie_trio.engine_api import Engine

__all__ = ["Shortages", "evicted_error"]

logger = logging.getLogger(__name__)

PRESSURE_MEMORY_SECONDS = 1.0
"""Inferlets that were told of a shortage so long ago are told again."""


class Shortages:
    """Finds pages for commands that lack them.

    Attributes:
        policy: Of contention.
        reclaim: Drops exports that nobody uses until so many pages are free, and returns how
            many pages could still be had that way; called with 0 to ask only.
    """

    def __init__(
        self,
        engine: Engine,
        pool: PagePool,
        tenants: Mapping[Tenant, None],
        config: ControlConfig,
        device: Device,
    ) -> None:
        self.policy = make_contention_policy(config.contention)
        self.reclaim: Callable[[int], int] = lambda _: 0
        self._engine, self._pool, self._device = engine, pool, device
        self._tenants = tenants
        self._pressure_at: float | None = None
        self._max_swapped = config.swap_bytes // max(1, engine.info.page_bytes)

    async def relieve(self, choice: Choice) -> Relief | None:
        """Do the next thing for a command that lacks pages.

        Returns:
            What is left to the caller: to wait or to let the command fail. None for nothing.
        """
        starved = choice.starved
        assert starved is not None, "callers look first"
        tenant = starved.tenant
        if tenant.is_suspended and choice.num_missing <= 0:
            await self._resume(tenant)
            return None
        shortage = self._shortage(choice, starved)
        if tenant.is_suspended and shortage.num_needed > shortage.num_attainable:
            # Not all that it has fits. What the command uses may: that comes by itself.
            tenant.is_suspended = False
            return None
        relief = self.policy.relieve(shortage)
        if isinstance(relief, Reclaim):
            num_free = self._pool.num_free
            self.reclaim(relief.num_pages)
            if self._pool.num_free > num_free:
                return None
            # Those pages are used by others as well, or are in host memory.
            relief = self.policy.relieve(replace(shortage, num_reclaimable=0))
        match relief:
            case SignalPressure():
                self._signal()
            case Suspend(tenant=victim):
                await self.suspend(victim)
            case SwapOwn(num_pages=count):
                await self._swap_out(tenant, self._idle(starved)[:count])
            case Evict(tenant=victim):
                self._evict(victim, choice.num_needed)
            case _:
                return relief
        # Whoever was told or ended acts before this is looked at again.
        await trio.lowlevel.checkpoint()
        return None

    async def bring_in(self, pages: Sequence[int]) -> None:
        """Move pages from host memory to the device, where so many pages are free.

        If that fails, what they held is lost, and whoever wants to see it is told so.
        """
        pool = self._pool
        data = pool.swap_in(pages)
        physical = pool.physical[np.array(pages, np.intp)]
        # Whoever is given one of these pages meanwhile writes it after this.
        is_done = await self._on_device(
            partial(self._engine.write_pages, physical, data)
        )
        for page in pages if not is_done else ():
            if pool.num_owners(page) or pool.num_pins(page):
                pool.note_lost(page)

    def _shortage(self, choice: Choice, starved: Command) -> Shortage:
        now, since = trio.current_time(), self._pressure_at
        if since is not None and now - since > PRESSURE_MEMORY_SECONDS:
            since = None
        return Shortage(
            requester=starved.tenant,
            num_needed=choice.num_needed,
            num_missing=choice.num_missing,
            num_attainable=self._pool.num_pages - self._count_own(starved.tenant),
            num_own_idle=len(self._idle(starved)),
            num_reclaimable=self.reclaim(0),
            holdings=self._holdings(now, is_progressing=bool(choice.commands)),
            pressure_seconds=None if since is None else now - since,
            num_swap_free=self._num_swap_free,
            is_progressing=bool(choice.commands),
        )

    @property
    def _num_swap_free(self) -> int:
        return self._max_swapped - len(self._pool.swapped)

    def _count_own(self, tenant: Tenant) -> int:
        physical = self._pool.physical
        return sum(int(physical[page]) >= 0 for page in tenant.used_pages())

    def _holdings(self, now: float, *, is_progressing: bool) -> list[Holding]:
        # Where nothing runs, ready commands wait for the same pages: to wait for them would
        # be to wait for ever.
        return [
            Holding(
                tenant,
                len(self._exclusive(tenant)),
                0.0
                if is_progressing and _can_run(tenant)
                else now - tenant.last_used_at,
            )
            for tenant in sorted(self._tenants, key=lambda t: t.age)
            if not tenant.is_suspended and self._has_pages(tenant)
        ]

    def _has_pages(self, tenant: Tenant) -> bool:
        physical = self._pool.physical
        return any(int(physical[page]) >= 0 for page in tenant.used_pages())

    def _idle(self, command: Command) -> list[int]:
        """Return what only its inferlet uses, and it does not."""
        used = command.uses
        return [page for page in self._exclusive(command.tenant) if page not in used]

    def _exclusive(self, tenant: Tenant) -> list[int]:
        pinned = [command.pages for command in tenant.unfinished]
        return self._pool.exclusive(list(tenant.pages()), pinned)

    def _signal(self) -> None:
        heard = [tenant.on_pressure() for tenant in list(self._tenants)]
        self._pressure_at = trio.current_time()
        if not any(heard):  # where nobody listens, nobody needs a moment
            self._pressure_at -= PRESSURE_MEMORY_SECONDS / 2

    def _evict(self, tenant: Tenant, num_needed: int) -> None:
        error = evicted_error(self._pool, num_needed)
        logger.warning("%s is ended: %s", tenant.name, error)
        tenant.is_evicted = True
        for command in tenant.unfinished:
            if not command.is_withdrawn:
                command.is_withdrawn, command.failure = True, error
        if (
            tenant in self._tenants
        ):  # not if it has ended, and others wait for its copies
            tenant.on_evicted(error)

    async def suspend(self, tenant: Tenant) -> None:
        """Move what an inferlet alone holds to host memory, if there is room.

        For another replica, which only reads pages, they stay where they are.
        """
        if tenant.on_read is not None:
            await self._read(tenant, tenant.on_read)
            return
        pages = self._exclusive(tenant)
        if tenant.is_suspended or len(pages) > self._num_swap_free:
            return
        if (count := await self._swap_out(tenant, pages)) is not None:
            tenant.is_suspended = True
            logger.info("%s is suspended: %d pages", tenant.name, count)

    async def _swap_out(self, tenant: Tenant, pages: Sequence[int]) -> int | None:
        """Move pages of one inferlet, and return how many; None where that has failed."""
        physical = self._pool.physical[np.array(pages, np.intp)]
        data: list[NDArray[np.uint8]] = []
        if not await self._on_device(
            lambda: data.append(self._engine.read_pages(physical))
        ):
            self._max_swapped = 0  # not again, or this would go on for ever
            return None
        # No command runs meanwhile, so that what the pages hold is still the same; the guest
        # may have shared them or have given them back.
        kept = set(pages).intersection(self._exclusive(tenant))
        is_kept = np.array([page in kept for page in pages], np.bool_)
        still = [page for page in pages if page in kept]
        self._pool.swap_out(still, data[0][is_kept])
        return len(still)

    async def _read(
        self, tenant: Tenant, on_read: Callable[[int, NDArray[np.uint8]], None]
    ) -> None:
        """Tell what the pages of a tenant hold, wherever they are."""
        pool = self._pool
        pages = [page for page in tenant.pages() if int(pool.physical[page]) >= 0]
        data: list[NDArray[np.uint8]] = []
        physical = pool.physical[np.array(pages, np.intp)]
        if pages and await self._on_device(
            lambda: data.append(self._engine.read_pages(physical))
        ):
            for page, content in zip(pages, data[0], strict=True):
                on_read(page, content)
        for page in tenant.pages():
            if page in pool.swapped:
                on_read(page, pool.swapped[page])

    async def _resume(self, tenant: Tenant) -> None:
        pages = sorted(self._pool.swapped.keys() & tenant.used_pages())
        tenant.is_suspended = False
        if pages:
            await self.bring_in(pages)
        logger.info("%s goes on: %d pages", tenant.name, len(pages))

    async def _on_device(self, call: Callable[[], None]) -> bool:
        try:
            await self._device.run(call)
        except EngineLostError:
            raise  # the batcher starts over
        except EngineError as error:
            logger.error("pages could not be moved: %s", error)
        except Exception:
            logger.exception("pages could not be moved")
        else:
            return True
        return False


def evicted_error(pool: PagePool, num_needed: int = 1) -> OutOfPagesError:
    """Return the reason why an inferlet was ended."""
    return OutOfPagesError(needed=num_needed, free=pool.num_free, total=pool.num_pages)


def _can_run(tenant: Tenant) -> bool:
    return any(c.num_blockers == 0 and not c.is_paused for c in tenant.unfinished)
