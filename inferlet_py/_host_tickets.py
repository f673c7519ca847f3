"""``tickets.wit`` as the SDK sees it."""

from __future__ import annotations

from typing import Protocol

from inferlet_py._binding import HostInterface, never_fails

__all__ = ["TICKETS", "TicketsHost"]


class TicketsHost(Protocol):
    """What is awaited; see ``tickets.wit``."""

    def wait(self, tickets: list[int], deadline: float | None) -> list[int]: ...
    def finish(self, ticket: int) -> None: ...
    @never_fails
    def release(self, ticket: int) -> None: ...
    @never_fails
    def cancel(self, ticket: int) -> None: ...


TICKETS = HostInterface("tickets", TicketsHost)
