"""``messaging.wit``: what an instance sends to its client, and what it receives from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pie_trio.application.host.interface import fallible, interface, waiting
from pie_trio.application.host.receiving import drop, open_receive, take_answer
from pie_trio.application.wasm.values import STRING, U8, U32, Array, Option, Variant

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pie_trio.application.host.session import Session
    from pie_trio.application.waiting import Waiting
    from pie_trio.control.outbox import Message, Outbox

__all__ = ["INTERFACE", "MESSAGE", "lift_message", "lower_message", "put"]

MESSAGE = Variant(text=STRING, binary=Array(U8))
"""The WIT variant ``message``."""


def lift_message(value: tuple[str, Any]) -> Message:
    """Return a message as a program gives it."""
    case, payload = value
    message: Message = payload if case == "text" else payload.tobytes()
    return message


def lower_message(message: Message | None) -> tuple[str, Any] | None:
    """Return a message as a program gets it."""
    if message is None:
        return None
    return ("text", message) if isinstance(message, str) else ("binary", message)


def put(
    session: Session,
    outbox: Outbox,
    message: Message,
    waiting_tickets: dict[int, None] | None = None,
) -> int | None:
    """Put a message into an outbox; return a ticket if it waits for room.

    Args:
        session: Who sends it.
        outbox: Where to.
        message: Text or bytes.
        waiting_tickets: Has the ticket for as long as it waits.
    """
    tickets = session.tickets
    if outbox.put(message):
        return None
    tickets.check_room()
    outbox.check_late(message)
    those = {} if waiting_tickets is None else waiting_tickets

    def note_room() -> None:
        drop(those, ticket)
        tickets.complete(ticket, None)

    ticket = tickets.open(lambda: take_back(), on_close=lambda: drop(those, ticket))
    those[ticket] = None
    take_back = outbox.put_late(message, note_room)
    return ticket


def send(session: Session, text: str) -> int | None:
    """Send a text to the client; return a ticket if it waits for room."""
    return put(session, session.outbox, text)


def send_bytes(session: Session, data: NDArray[np.uint8]) -> int | None:
    """Send bytes; see :func:`send`."""
    return put(session, session.outbox, data.tobytes())


def receive(session: Session) -> int:
    """Return a ticket for the client's next message."""
    session.on_receive()
    return open_receive(session, "take-message", session.inbox.receive)


def take_message(session: Session, ticket: int) -> tuple[str, Any] | Waiting | None:
    """Wait for a message and return it; None once there will be no more."""
    return take_answer(session, "take-message", ticket, lower_message)


INTERFACE = interface(
    "messaging",
    {
        "send": fallible(send, Option(U32), STRING),
        "send-bytes": fallible(send_bytes, Option(U32), Array(U8)),
        "receive": fallible(receive, U32),
        "take-message": waiting(take_message, Option(MESSAGE), U32),
    },
    types={"message": MESSAGE},
)
