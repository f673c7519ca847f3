"""Forwards that return nothing: they only write the keys and values of tokens."""

from __future__ import annotations

from inferlet_py._host import get_host
from inferlet_py._sync import Event
from inferlet_py._tasks import wait_ticket

__all__ = ["Flush"]


class Flush:
    """A forward that returns nothing, for the contexts that count on what it writes.

    A ticket can be awaited once, but forks share the pages of their parent: whoever
    comes first awaits it, and the others look at what became of it.

    Args:
        ticket: Of the forward.
        start: The first slot that it writes.
    """

    def __init__(self, ticket: int, start: int) -> None:
        self.start = start
        self._ticket = ticket
        self._num_users = 1
        self._is_lost = False
        self._settled: Event | None = None  # there is one once somebody waits

    def share(self) -> Flush:
        """Count one more context that needs it."""
        self._num_users += 1
        return self

    def release(self) -> None:
        """Count one context less; withdraw the forward if that was the last."""
        self._num_users -= 1
        if self._num_users == 0 and self._settled is None:
            self._is_lost = True
            get_host().cancel(self._ticket)

    async def settle(self) -> bool:
        """Wait for it.

        Returns:
            Whether it succeeded; False only if somebody else was told why not.

        Raises:
            HostError: It failed, and nobody was told yet.
        """
        if self._settled is not None:
            if not self._settled.is_set():
                await self._settled.wait()
            return not self._is_lost
        self._settled = Event()
        try:
            await wait_ticket(self._ticket)
            get_host().finish(self._ticket)
        except BaseException:
            self._is_lost = True
            raise
        finally:
            self._settled.set()
        return True
