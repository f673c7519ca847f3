"""Tickets for messages and for answers: what becomes ready later, and has a size of its own."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pie_trio.errors import (
    BadArgumentError,
    EngineError,
    InferletError,
    LimitError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pie_trio.application.host.session import Session
    from pie_trio.application.waiting import Waiting
    from pie_trio.control.quotas import Share
    from pie_trio.control.receives import Receive

__all__ = [
    "Answer",
    "RequestBudget",
    "drop",
    "open_receive",
    "start_request",
    "take_answer",
]

logger = logging.getLogger(__name__)


class Answer:
    """What a ticket is ready with.

    Attributes:
        kind: What may take it.
        take: Returns it, and removes it from where it waits.
    """

    __slots__ = ("kind", "take")

    def __init__(self, kind: str, take: Callable[[], Any]) -> None:
        self.kind, self.take = kind, take


class _Arrival:
    """A receive behind a ticket. It is there only once the wait for it has begun."""

    receive: Receive[Any] | None = None

    def take(self) -> Any:
        """Take the message out of its queue."""
        assert self.receive is not None, "the ticket is ready, so the wait has begun"
        return self.receive.take()

    def cancel(self) -> None:
        """Leave the message, if there is one, to who waits next."""
        if self.receive is not None:
            self.receive.cancel()


def open_receive(
    session: Session, kind: str, begin: Callable[[Callable[[], None]], Receive[Any]]
) -> int:
    """Return a ticket for a message, which stays in its queue until it is taken.

    Args:
        session: Whose ticket it is.
        kind: What may take it: see :func:`take_answer`.
        begin: Begins to wait; gets what is to be called once there is a message.
    """
    session.tickets.check_room()
    arrival = _Arrival()
    ticket = session.tickets.open(on_close=arrival.cancel)
    answer = Answer(kind, arrival.take)

    def tell() -> None:
        session.tickets.complete(ticket, answer)

    arrival.receive = begin(tell)
    return ticket


def drop(tickets: dict[int, None], ticket: int) -> None:
    """Take a ticket out of those that wait for something, if it is one of them."""
    tickets.pop(ticket, None)


class RequestBudget:
    """Counts the bytes of an instance's requests, and of the answers that it has not taken.

    Args:
        max_bytes: Most of them.
        share: Of the quotas that count them too.
    """

    def __init__(self, max_bytes: int, share: Share) -> None:
        self.max_bytes, self._share = max_bytes, share
        self.num_bytes = 0

    def add(self, num_bytes: int) -> None:
        """Count more.

        Raises:
            LimitError: It would be too much.
        """
        if self.num_bytes + num_bytes > self.max_bytes:
            raise LimitError(
                f"requests and answers would take {self.num_bytes + num_bytes} bytes, but "
                f"an inferlet may have {self.max_bytes} at once: take answers before you "
                "ask for more"
            )
        self._share.check("request_bytes", num_bytes)
        self.num_bytes += num_bytes
        self._share.take("request_bytes", num_bytes)

    def remove(self, num_bytes: int) -> None:
        """Count less."""
        self.num_bytes -= num_bytes
        self._share.give("request_bytes", num_bytes)


def start_request(
    session: Session,
    kind: str,
    work: Callable[[], Awaitable[Any]],
    *,
    num_bytes: int = 0,
    size_of: Callable[[Any], int] = lambda _: 0,
) -> int:
    """Start what answers later, and return its ticket. Cancelling the ticket stops it.

    Args:
        session: Whose ticket it is.
        kind: What may take the answer: see :func:`take_answer`.
        work: Returns the answer.
        num_bytes: Of the request.
        size_of: Returns the bytes of the answer.

    Raises:
        LimitError: There are too many requests, or they are too large together.
        UnsupportedError: The server has no such service.
    """
    tickets, budget = session.tickets, session.requests
    session.tasks.check()
    tickets.check_room()
    if len(session.tasks) >= session.limits.max_in_flight:
        raise LimitError(
            f"{len(session.tasks)} requests have not ended, which is as many as an inferlet "
            "may have"
        )
    budget.add(num_bytes)
    held = 0

    def give_back() -> None:
        budget.remove(held)

    async def answer() -> None:
        nonlocal held
        outcome: Any
        try:
            value = await work()
            size = size_of(value)
            budget.add(size)  # beside the request, which is there until now
            outcome, held = Answer(kind, lambda: value), size
        except (InferletError, EngineError) as error:
            outcome = error
        except Exception:
            logger.exception("%s: %s failed", session.launch.instance_id, kind)
            outcome = InferletError(f"the server failed at {kind}: its log says why")
        finally:
            budget.remove(num_bytes)
        if ticket in tickets:
            tickets.complete(ticket, outcome)
        else:
            give_back()  # nobody wants it any more

    ticket = tickets.open(lambda: scope.cancel(), on_close=give_back)
    scope = session.tasks.start(answer)
    return ticket


def take_answer(
    session: Session,
    kind: str,
    ticket: int,
    convert: Callable[[Any], Any] = lambda value: value,
) -> Any | Waiting:
    """Wait for an answer or a message, close its ticket, and return what is made of it.

    Raises:
        BadArgumentError: The ticket is not of this kind; it stays open.
    """

    def take(ticket: int) -> Any:
        answer = session.tickets.peek(ticket)
        if isinstance(answer, Answer) and answer.kind == kind:
            value = answer.take()
            session.tickets.take(ticket)
            return convert(value)
        if isinstance(answer, Exception):
            return session.tickets.take(ticket)
        raise BadArgumentError(f"ticket {ticket} is not for {kind}")

    return session.when_ready(ticket, take)
