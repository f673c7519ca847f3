"""``tickets.wit``: wait for what was enqueued."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from pie_trio.application.host.interface import HANDLES, answering, interface, waiting
from pie_trio.application.waiting import Waiting
from pie_trio.application.wasm.values import F64, U32, Option, Unit
from pie_trio.errors import BadArgumentError

if TYPE_CHECKING:
    from pie_trio.application.host.session import Session

__all__ = ["INTERFACE"]


def wait(
    session: Session, tickets: list[int], deadline: float | None
) -> list[int] | Waiting:
    """Wait until one of the tickets is ready; return those that are, and ``STOP`` once."""
    if deadline is not None and not math.isfinite(deadline):
        raise BadArgumentError(f"a deadline is a finite time, got {deadline}")
    if deadline is None and not tickets:
        raise BadArgumentError(
            "waiting for no ticket and without a deadline would never end"
        )
    ready = session.tickets.poll(tickets)
    if ready or (deadline is not None and deadline <= trio.current_time()):
        return ready
    return Waiting(lambda: session.tickets.wait_any(tickets, deadline))


def finish(session: Session, ticket: int) -> Waiting | None:
    """Wait for a ticket, close it, and raise if its command failed."""

    def take(ticket: int) -> None:
        session.tickets.take(ticket)

    return session.when_ready(ticket, take)


def cancel(session: Session, ticket: int) -> None:
    """Withdraw a command that has not started, and close its ticket."""
    session.tickets.cancel(ticket)


def release(session: Session, ticket: int) -> None:
    """Close a ticket and let its command go on."""
    session.tickets.release(ticket)


INTERFACE = interface(
    "tickets",
    {
        "wait": waiting(wait, HANDLES, HANDLES, Option(F64)),
        "finish": waiting(finish, Unit(), U32),
        "release": answering(release, None, U32),
        "cancel": answering(cancel, None, U32),
    },
)
