"""Tickets: what an inferlet holds of a command until it has taken the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from pie_trio.errors import LimitError, UnknownHandleError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["STOP", "TicketTable"]

STOP = 0
"""What a wait returns, once, among the tickets that are ready: the inferlet is to end."""


class _Entry:
    __slots__ = ("is_ready", "on_cancel", "on_close", "outcome")

    def __init__(
        self,
        on_cancel: Callable[[], None] | None,
        on_close: Callable[[], None] | None,
    ) -> None:
        self.on_cancel, self.on_close = on_cancel, on_close
        self.is_ready = False
        self.outcome: Any = None


class TicketTable:
    """The tickets of one inferlet.

    Args:
        max_in_flight: Most tickets at once.
        on_wake: Called when a wait of the inferlet is over and it is about to run, with the
            source of what it waited for, or None.
    """

    def __init__(
        self, *, max_in_flight: int, on_wake: Callable[[object], None]
    ) -> None:
        self.max_in_flight = max_in_flight
        self._on_wake = on_wake
        self._entries: dict[int, _Entry] = {}
        self._next = 1
        self._awaited: frozenset[int] = frozenset()
        self._wake = trio.Event()
        self._is_stop_due = False

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, ticket: int) -> bool:
        return ticket in self._entries

    def check_room(self) -> None:
        """Raise unless one more ticket may be opened.

        Raises:
            LimitError: As many are open as the inferlet may have.
        """
        if len(self._entries) >= self.max_in_flight:
            raise LimitError(
                f"{self.max_in_flight} commands are in flight, which is as many as an inferlet "
                "may have: take or cancel some before submitting more"
            )

    def open(
        self,
        on_cancel: Callable[[], None] | None = None,
        *,
        on_close: Callable[[], None] | None = None,
    ) -> int:
        """Return a new ticket.

        Args:
            on_cancel: Withdraws what is behind it. Called only while the ticket is not ready.
            on_close: Gives back what the ticket holds besides. Called once, however and
                whenever the ticket is closed.
        """
        ticket = self._next
        self._next += 1
        self._entries[ticket] = _Entry(on_cancel, on_close)
        return ticket

    def complete(self, ticket: int, outcome: Any, source: object = None) -> None:
        """Make a ticket ready; what comes for one that is no longer open is forgotten.

        Args:
            ticket: From :meth:`open`.
            outcome: The result, or an exception that taking it will raise.
            source: What it comes from, for ``on_wake``.
        """
        entry = self._entries.get(ticket)
        if entry is None:
            return
        entry.is_ready, entry.outcome, entry.on_cancel = True, outcome, None
        if ticket in self._awaited:
            self._awaited = frozenset()
            self._on_wake(source)
            self._wake.set()

    def ready(self, tickets: Sequence[int]) -> list[int]:
        """Return those of the tickets that are ready.

        Raises:
            UnknownHandleError: One is not open.
        """
        return [ticket for ticket in tickets if self._get(ticket).is_ready]

    def stop(self) -> None:
        """Let the wait that the inferlet is in, or its next one, return :data:`STOP`."""
        self._is_stop_due = True
        if self._awaited:
            self._awaited = frozenset()
            self._on_wake(None)
        self._wake.set()  # it may also wait for a deadline alone

    def poll(self, tickets: Sequence[int]) -> list[int]:
        """As :meth:`ready`, with :data:`STOP` at the end where that is due.

        Raises:
            UnknownHandleError: One is not open.
        """
        ready = self.ready(tickets)
        if self._is_stop_due:
            self._is_stop_due = False
            ready.append(STOP)
        return ready

    async def wait_any(
        self, tickets: Sequence[int], deadline: float | None
    ) -> list[int]:
        """Wait until one of the tickets is ready, the deadline has passed, or a stop is due.

        There is one waiter at a time: the inferlet itself.

        Returns:
            As :meth:`poll`.
        """
        if ready := self.poll(tickets):
            return ready
        self._awaited = frozenset(tickets)
        self._wake = trio.Event()
        try:
            if deadline is None:
                await self._wake.wait()
            else:
                with trio.move_on_at(deadline):
                    await self._wake.wait()
        finally:
            self._awaited = frozenset()
        return self.poll(tickets)

    def peek(self, ticket: int) -> Any:
        """Return the result or the exception of a ready ticket, which stays open.

        Raises:
            UnknownHandleError: The ticket is not open.
        """
        entry = self._get(ticket)
        assert entry.is_ready, "callers wait before they look"
        return entry.outcome

    def take(self, ticket: int) -> Any:
        """Close a ready ticket and return its result, or raise its error.

        Raises:
            UnknownHandleError: The ticket is not open.
        """
        outcome = self.peek(ticket)
        self._close(ticket)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def cancel(self, ticket: int) -> None:
        """Close a ticket, ready or not, and withdraw what is behind it. Unknown ones are fine."""
        entry = self._close(ticket)
        if entry is not None and entry.on_cancel is not None:
            entry.on_cancel()

    def release(self, ticket: int) -> None:
        """Close a ticket, ready or not, and let what is behind it go on. Unknown ones are fine."""
        self._close(ticket)

    def cancel_all(self) -> None:
        """Cancel every open ticket."""
        for ticket in list(self._entries):
            self.cancel(ticket)

    def _close(self, ticket: int) -> _Entry | None:
        """Forget a ticket and return what was known of it."""
        entry = self._entries.pop(ticket, None)
        if entry is not None and entry.on_close is not None:
            entry.on_close()
        return entry

    def _get(self, ticket: int) -> _Entry:
        entry = self._entries.get(ticket)
        if entry is None:
            raise UnknownHandleError("ticket", ticket)
        return entry
