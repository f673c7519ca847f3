"""Guests that compute for long: they share a small part of a core while others want to run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from pie_trio.application.computing import Account

__all__ = ["BackgroundShare"]

WORKING_SHARE = 0.25
"""Part of a core for those who compute much between steps of the model, beside those who do not."""


class _Turns:
    """One place; of those who want it, whoever has had the least of it comes next.

    First come, first served would give most to the owner, and the instance, that asks most often.
    """

    def __init__(self) -> None:
        self._is_taken = False
        self._waiting: dict[trio.Event, Account] = {}
        self._least_of_owner = self._least_of_account = 0.0

    async def take(self, account: Account) -> None:
        """Wait for the place."""
        # Who comes late has had as little as who had the least, but not less: or it would go
        # first for all the time that the others have had before it was there.
        owner = account.owner
        account.turns_seconds = max(account.turns_seconds, self._least_of_account)
        owner.turns_seconds = max(owner.turns_seconds, self._least_of_owner)
        if not self._is_taken:
            self._is_taken = True
            return
        event = trio.Event()
        self._waiting[event] = account
        try:
            await event.wait()
        except trio.Cancelled:
            if self._waiting.pop(event, None) is None:
                self.give()  # it was ours already
            raise

    def give(self) -> None:
        """Let the next one have the place."""
        if not self._waiting:
            self._is_taken = False
            return
        event, account = min(
            self._waiting.items(),
            key=lambda item: (item[1].owner.turns_seconds, item[1].turns_seconds),
        )
        del self._waiting[event]
        self._least_of_account = account.turns_seconds
        self._least_of_owner = account.owner.turns_seconds
        event.set()


class BackgroundShare:
    """Lets guests go on one after the other whose slice is over, or whose account is overdrawn.

    Who has something left goes on as soon as everybody else had a turn. Of the others, those whom
    the model works for share a part of a core while anybody keeps to what it earns, and are not
    held back otherwise. All that do nothing but compute share a small part of a core.

    Args:
        share: Part of a core for all who do nothing but compute while ``is_contended()``; with
            nobody else at work they get all of it.
        is_contended: Whether the device or another inferlet is at work.
        count_steps: Lets all accounts know what the device has done: who waits for the end of a
            generation has not computed since it began.
    """

    def __init__(
        self,
        *,
        share: float,
        is_contended: Callable[[], bool],
        count_steps: Callable[[], None] = lambda: None,
    ) -> None:
        self._share = share
        self._is_contended, self._count_steps = is_contended, count_steps
        # One of each at a time, so that however many compute, the batcher waits for a slice or
        # two.
        self._turn = trio.Lock()
        self._turns_of_working, self._turns_of_computing = _Turns(), _Turns()

    async def wait_turn(self, account: Account) -> None:
        """Return when the caller may compute on."""
        if not account.is_overdrawn:
            async with self._turn:
                await trio.lowlevel.checkpoint()
            return
        account.owner.begin_waiting()
        self._count_steps()
        try:
            is_working = account.is_at_work
            turns = self._turns_of_working if is_working else self._turns_of_computing
            await turns.take(account)
            try:
                self._count_steps()  # time may have passed
                seconds = account.settle()
                if share := self._share_beside(account, is_working=is_working):
                    await trio.sleep(seconds * (1 / share - 1))
                else:
                    await trio.lowlevel.checkpoint()
            finally:
                turns.give()
        finally:
            account.owner.end_waiting()

    def _share_beside(self, account: Account, *, is_working: bool) -> float | None:
        """Return the part of a core that it shares; None if nobody has to be spared."""
        if is_working:
            return WORKING_SHARE if account.has_neighbours else None
        return self._share if self._is_contended() else None
