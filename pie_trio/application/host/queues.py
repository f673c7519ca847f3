"""``queues.wit``: command queues."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pie_trio.application.host.debugging import answer_queue
from pie_trio.application.host.interface import fallible, interface
from pie_trio.application.wasm.values import STRING, U32, Enum, Unit
from pie_trio.control.commands import Priority
from pie_trio.control.queues import CommandQueue

if TYPE_CHECKING:
    from pie_trio.application.host.session import Session

__all__ = ["INTERFACE"]

PRIORITY = Enum("low", "normal", "high")


def create_queue(session: Session, queue: int, model: str) -> None:
    """Open a queue on a model under an unused number."""
    served = session.model(model)
    session.queues.check_unused([queue])
    session.use_model(served)
    session.queues.add(queue, CommandQueue(served, queue))


def destroy_queue(session: Session, queue: int) -> None:
    """Close a queue and withdraw what has not started."""
    session.queues.remove(queue).withdraw_all()


def synchronize(session: Session, queue: int) -> int:
    """Return a ticket that is ready once the queue's commands have finished."""
    found, tickets = session.queues.get(queue), session.tickets
    tickets.check_room()
    # Also where it is released: nobody would hear of it.
    ticket = tickets.open(on_close=lambda: take_away())
    model = found.model
    take_away = found.synchronize(lambda: tickets.complete(ticket, None, model))
    return ticket


def set_queue_priority(session: Session, queue: int, priority: str) -> None:
    """Set the priority of the commands that are enqueued from now on."""
    session.queues.get(queue).priority = Priority[priority.upper()]


def service_id(session: Session, queue: int) -> str:
    """Return the name of the model that serves a queue."""
    return session.queues.get(queue).model.info.name


def debug_queue(session: Session, queue: int, query: str) -> str:
    """Answer a question about a queue, as JSON."""
    return json.dumps(answer_queue(session, session.queues.get(queue), query))


INTERFACE = interface(
    "queues",
    {
        "create-queue": fallible(create_queue, Unit(), U32, STRING),
        "destroy-queue": fallible(destroy_queue, Unit(), U32),
        "synchronize": fallible(synchronize, U32, U32),
        "set-queue-priority": fallible(set_queue_priority, Unit(), U32, PRIORITY),
        "service-id": fallible(service_id, STRING, U32),
        "debug-queue": fallible(debug_queue, STRING, U32, STRING),
    },
    types={"priority": PRIORITY},
)
