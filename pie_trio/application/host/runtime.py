"""``runtime.wit``: who an instance is, its arguments, its clock, its log and its pressure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import trio

from pie_trio._version import __version__
from pie_trio.application.host.debugging import answer_instance
from pie_trio.application.host.interface import answering, fallible, interface
from pie_trio.application.timeline import Span
from pie_trio.application.wasm.values import F64, STRING, U32, U64, Enum
from pie_trio.errors import LimitError

if TYPE_CHECKING:
    from pie_trio.application.host.session import Session

__all__ = ["INTERFACE", "Runtime"]

LEVEL = Enum("debug", "info", "warning", "error")
MAX_OPEN_SPANS = 4096
MAX_SPAN_NAME = 256


class Runtime:
    """What a session keeps for this interface.

    Attributes:
        spans: The latest of those that are open, by number.
        num_suspending: Suspensions of its pages that have not finished.
    """

    def __init__(self) -> None:
        self.spans: dict[int, Span] = {}
        self.num_suspending = 0
        self._next_span = 1
        self._listening: dict[int, None] = {}

    def add_span(self, span: Span) -> int:
        """Return the number of a new span; the oldest one goes where there are too many."""
        number = self._next_span
        self._next_span += 1
        self.spans[number] = span
        if len(self.spans) > MAX_OPEN_SPANS:
            del self.spans[next(iter(self.spans))]
        return number

    def listen(self, ticket: int) -> None:
        """Let a ticket be ready when pages are short."""
        self._listening[ticket] = None

    def forget(self, ticket: int) -> None:
        """Let it not be ready any more."""
        self._listening.pop(ticket, None)

    def close(self) -> None:
        """End the spans that are open: the instance ends."""
        for span in self.spans.values():
            span.ends_at = trio.current_time()
        self.spans.clear()

    def signal_pressure(self, session: Session) -> bool:
        """Tell the inferlet that pages are short; False if it does not listen."""
        tickets = list(self._listening)
        self._listening.clear()
        for ticket in tickets:
            session.tickets.complete(ticket, None)
        return bool(tickets)


def get_version(_session: Session) -> str:
    """Return the version of the server."""
    return __version__


def get_instance_id(session: Session) -> str:
    """Return the name of this run."""
    return session.launch.instance_id


def get_arguments(session: Session) -> str:
    """Return what the program was launched with, as JSON."""
    return session.launch.arguments


def get_owner(session: Session) -> str:
    """Return on whose behalf the instance runs."""
    return session.launch.owner


def now(_session: Session) -> float:
    """Return the time on trio's clock."""
    return trio.current_time()


def log(session: Session, level: str, text: str, fields: str) -> None:
    """Append a text to the instance's log."""
    session.log.write(level, f"{text} {fields}" if fields else text)


def begin_span(session: Session, name: str) -> int:
    """Begin a span, and return its number."""
    span = Span(session.launch.instance_id, name[:MAX_SPAN_NAME], trio.current_time())
    session.services.timeline.spans.append(span)
    return session.runtime.add_span(span)


def end_span(session: Session, number: int) -> None:
    """End a span."""
    span = session.runtime.spans.pop(number, None)
    if span is not None:
        span.ends_at = trio.current_time()


def memory_pressure(session: Session) -> int:
    """Return a ticket that is ready when pages are short."""
    session.tickets.check_room()
    runtime = session.runtime
    ticket = session.tickets.open(on_close=lambda: runtime.forget(ticket))
    runtime.listen(ticket)
    return ticket


def suspend_pages(session: Session) -> int:
    """Move the instance's pages to host memory; return a ticket that is ready then."""
    session.tickets.check_room()
    runtime = session.runtime
    # Also those whose ticket was given up, until the device gets to them.
    if runtime.num_suspending >= session.limits.max_in_flight:
        raise LimitError(
            f"{runtime.num_suspending} suspensions have not finished, which is as many as an "
            "inferlet may have: wait for one"
        )
    ticket = session.tickets.open()
    left = len(session.tenants)

    def note_done() -> None:
        nonlocal left
        left -= 1
        runtime.num_suspending -= 1
        if left == 0:
            session.tickets.complete(ticket, None)

    if not left:
        session.tickets.complete(ticket, None)
    runtime.num_suspending += left
    for name, tenant in session.tenants.items():
        session.models[name].batcher.suspend(tenant, note_done)
    return ticket


def debug_query(session: Session, query: str) -> str:
    """Answer a question about the instance, as JSON."""
    return json.dumps(answer_instance(session, query))


INTERFACE = interface(
    "runtime",
    {
        "get-version": answering(get_version, STRING),
        "get-instance-id": answering(get_instance_id, STRING),
        "get-arguments": answering(get_arguments, STRING),
        "get-owner": answering(get_owner, STRING),
        "now": answering(now, F64),
        "log": answering(log, None, LEVEL, STRING, STRING),
        "begin-span": answering(begin_span, U64, STRING),
        "end-span": answering(end_span, None, U64),
        "memory-pressure": fallible(memory_pressure, U32),
        "suspend-pages": fallible(suspend_pages, U32),
        "debug-query": fallible(debug_query, STRING, STRING),
    },
    types={"level": LEVEL},
)
