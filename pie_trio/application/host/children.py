"""``children.wit``: inferlets that an instance launches. They end before it does.

A child runs in a task of its parent. Two more carry messages between them, each from a bounded
outbox to a bounded inbox, so a side that does not receive holds up the one that sends.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, Protocol, cast

import trio

from pie_trio.application.host.grants import check_grant
from pie_trio.application.host.interface import fallible, interface, waiting
from pie_trio.application.host.messaging import (
    MESSAGE,
    lift_message,
    lower_message,
    put,
)
from pie_trio.application.host.receiving import (
    Answer,
    drop,
    open_receive,
    take_answer,
)
from pie_trio.application.wasm.values import STRING, U32, Option, Tuple, Unit, Variant
from pie_trio.control.handles import HandleTable
from pie_trio.control.inbox import Inbox
from pie_trio.control.outbox import Outbox
from pie_trio.control.receives import message_bytes
from pie_trio.errors import (
    BadArgumentError,
    CancelledError,
    EngineError,
    GuestFailedError,
    InferletError,
    LimitError,
    NotFoundError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pie_trio.application.host.session import Session
    from pie_trio.application.waiting import Waiting
    from pie_trio.config import InstanceLimits
    from pie_trio.control.outbox import Message

__all__ = ["INTERFACE", "ChildInstance", "Children", "Outcome", "Spawner"]

MESSAGES, OUTCOMES = "take-child-message", "take-outcome"
CANCELLED = ("cancelled", None)
OUTCOME = Variant(returned=STRING, raised=Tuple(STRING, STRING, STRING), cancelled=None)

Outcome = tuple[str, Any]
"""The WIT variant ``outcome``."""


logger = logging.getLogger(__name__)


class ChildInstance(Protocol):
    """An instance that has not started."""

    @property
    def session(self) -> Session:
        """Its tables, its outbox and its inbox."""
        ...

    async def run(self) -> str:
        """Run it to its end, give everything back, and return its result as JSON."""
        ...


class Spawner(Protocol):
    """Who makes instances."""

    async def prepare_child(
        self, parent: Session, program: str, arguments: Mapping[str, Any]
    ) -> ChildInstance:
        """Return an instance on behalf of the parent's owner, with the parent's grants.

        Args:
            parent: Who launches it.
            program: Its name; empty for the parent's own.
            arguments: By name.

        Raises:
            NotFoundError: There is no such program.
            LimitError: There are as many instances as there may be.
            GuestFailedError: The program has a syntax error.
        """
        ...


class Child:
    """One child, as its parent sees it.

    Attributes:
        from_parent: What the parent has sent and the child's inbox had no room for yet.
        to_parent: What the child has sent and the parent has not received yet.
        outcome: What it ended with; None while it runs.
        task: Cancels it with all that belongs to it.
    """

    def __init__(self, parent: Session) -> None:
        limits = parent.limits
        boxes: dict[str, Any] = {
            "max_unread": limits.max_unread,
            "max_bytes": limits.max_unread_bytes,
            "share": parent.share,
        }
        self.from_parent, self.to_parent = Outbox(**boxes), Inbox(**boxes)
        self.outcome: Outcome | None = None
        self.task = trio.CancelScope()
        self._parent = parent
        self._run_scope = trio.CancelScope()
        self._session: Session | None = None  # while it runs
        self._cancellation = CancelledError("its parent cancelled it")
        self._failure: Outcome | None = None
        self._has_started = False
        self._waiting: dict[int, None] = {}  # tickets for the outcome
        self._sending: dict[int, None] = {}  # tickets of messages without room

    # ---- the parent's calls ----------------------------------------------------------

    def send(self, message: Message) -> int | None:
        """Send it a message; return a ticket if there is no room yet."""
        if self.outcome is not None:
            raise self._gone()
        size, most = message_bytes(message), self.from_parent.max_bytes
        if size > most:
            raise LimitError(
                f"a message of {size} bytes is too large for a child, which takes {most}: "
                "send it in parts"
            )
        return put(self._parent, self.from_parent, message, self._sending)

    def wait(self) -> int:
        """Return a ticket that is ready when it has ended."""
        tickets = self._parent.tickets
        tickets.check_room()
        ticket = tickets.open(on_close=lambda: drop(self._waiting, ticket))
        self._waiting[ticket] = None
        if self.outcome is not None:
            self._tell(self.outcome)
        return ticket

    def cancel(self) -> None:
        """Have it cancelled, so that it can clean up; what it has sent is still to be received."""
        if self._session is None:
            self._run_scope.cancel()  # it has not started
        else:
            self._session.stop(self._cancellation)

    def release(self) -> None:
        """Cancel all of it, and drop its messages."""
        self.to_parent.close()
        self.task.cancel()

    # ---- its tasks -------------------------------------------------------------------

    async def run(
        self, started: int, spawner: Spawner, program: str, arguments: Mapping[str, Any]
    ) -> None:
        """Run it to its end, and hand on its messages until the parent has them.

        Args:
            started: The ticket that is ready once it has started, or could not.
            spawner: Makes the instance.
            program: Its name.
            arguments: By name.
        """
        outcome: Outcome = CANCELLED
        try:
            async with trio.open_nursery() as nursery:
                try:
                    with self._run_scope:
                        instance = await spawner.prepare_child(
                            self._parent, program, arguments
                        )
                        self._session = instance.session
                        self._note_started(started, None)
                        nursery.start_soon(self._carry_down, instance.session)
                        nursery.start_soon(self._carry_up, instance.session)
                        outcome = ("returned", self._checked(await instance.run()))
                    outcome = self._failure or outcome
                except GuestFailedError as error:
                    outcome = ("raised", (error.kind, error.message, error.traceback))
                except (InferletError, EngineError) as error:
                    if error is not self._cancellation:
                        outcome = ("raised", (type(error).__name__, str(error), ""))
                    self._note_started(started, error)
                except Exception:
                    logger.exception("a child of %s", self._parent.launch.instance_id)
                    text = "the server failed at a child: its log says why"
                    outcome = ("raised", ("InferletError", text, ""))
                finally:
                    self._note_started(started, None)
                    self._end(outcome)
        finally:
            self.to_parent.end()

    def _note_started(self, ticket: int, outcome: Exception | None) -> None:
        """Complete the ticket of the launch; what comes first counts."""
        if not self._has_started:
            self._has_started = True
            self._parent.tickets.complete(ticket, outcome)

    def _checked(self, result: str) -> str:
        """Return a result that is not too large to be kept."""
        most = self._parent.limits.max_unread_bytes
        if len(result) > most:
            raise LimitError(
                f"the result has {len(result)} characters, which is too large for a "
                f"parent, which takes {most}: send it in parts"
            )
        return result

    async def _carry_down(self, child: Session) -> None:
        while messages := await self.from_parent.take():
            for message in messages:
                if not await child.inbox.put(message):
                    return  # it has ended

    async def _carry_up(self, child: Session) -> None:
        try:
            while messages := await child.outbox.take():
                for message in messages:
                    if not await self.to_parent.put(message):
                        return  # nobody receives it any more
        except LimitError as error:
            self._failure = ("raised", (type(error).__name__, str(error), ""))
            self._run_scope.cancel()
        finally:
            self.to_parent.end()

    def _end(self, outcome: Outcome) -> None:
        """Note that it has ended and given everything back."""
        self.outcome = outcome
        self._parent.children.num_alive -= 1
        self.from_parent.close()
        self._tell(outcome)
        for ticket in list(self._sending):
            self._parent.tickets.complete(ticket, self._gone())
        self._sending.clear()

    def _tell(self, outcome: Outcome) -> None:
        answer = Answer(OUTCOMES, lambda: outcome)
        for ticket in list(self._waiting):
            self._parent.tickets.complete(ticket, answer)
        self._waiting.clear()

    @staticmethod
    def _gone() -> NotFoundError:
        return NotFoundError("the child has ended: it receives no more messages")


class Children:
    """What a session keeps for this interface.

    Attributes:
        num_alive: Children that have not ended, also those that are forgotten.
    """

    def __init__(self, limits: InstanceLimits) -> None:
        self.num_alive = 0
        self.table: HandleTable[Child] = HandleTable(
            "child", max_handles=limits.max_children
        )

    def close(self) -> None:
        """Forget all children, which have ended, and what they have sent."""
        for child in self.table.clear():
            child.to_parent.close()

    def check_room(self, session: Session, number: int) -> None:
        """Raise unless a child may be launched under a number."""
        limits, depth = session.limits, session.launch.depth + 1
        if depth > limits.max_depth:
            raise LimitError(
                f"this inferlet is {session.launch.depth} launches deep, which is as deep as "
                "they may be nested: let an inferlet above launch the others"
            )
        if max(self.num_alive, len(self.table)) >= limits.max_children:
            raise LimitError(
                f"{limits.max_children} children are there, which is as many as an inferlet "
                "may have at once: wait for some before you launch more"
            )
        self.table.check_unused([number])


def spawn(session: Session, number: int, program: str, arguments: str) -> int:
    """Launch a child under an unused number; return a ticket that is ready once it runs."""
    spawner = session.spawner
    if spawner is None:
        raise UnsupportedError("this server launches no children")
    check_grant(session, "spawn", "launching a child")
    if len(arguments) > (most := session.limits.max_argument_bytes):
        raise LimitError(
            f"the arguments of a child have {len(arguments)} characters as JSON, but {most} are "
            "the limit: send it the rest as messages"
        )
    by_name = _parse(arguments)
    session.tickets.check_room()
    session.tasks.check()
    session.children.check_room(session, number)
    session.share.check("instances", 1)
    session.tree.totals.check("launches")
    session.tree.totals.add("launches")
    child = Child(session)
    session.children.table.add(number, child)
    session.children.num_alive += 1
    ticket = session.tickets.open(child.cancel)
    child.task = session.tasks.start(
        lambda: child.run(ticket, spawner, program, by_name)
    )
    return ticket


def send_child(session: Session, number: int, content: tuple[str, Any]) -> int | None:
    """Send a message to a child; return a ticket if it waits for room."""
    return session.children.table.get(number).send(lift_message(content))


def receive_child(session: Session, number: int) -> int:
    """Return a ticket for the next message that a child sends."""
    child = session.children.table.get(number)
    return open_receive(session, MESSAGES, child.to_parent.receive)


def take_child_message(
    session: Session, ticket: int
) -> tuple[str, Any] | Waiting | None:
    """Wait for a message and return it; None once there will be no more."""
    return take_answer(session, MESSAGES, ticket, lower_message)


def wait_child(session: Session, number: int) -> int:
    """Return a ticket that is ready when a child has ended."""
    return session.children.table.get(number).wait()


def take_outcome(session: Session, ticket: int) -> Outcome | Waiting:
    """Wait until a child has ended, and return what it ended with."""
    return take_answer(session, OUTCOMES, ticket)


def cancel_child(session: Session, number: int) -> None:
    """Cancel a child."""
    session.children.table.get(number).cancel()


def release_child(session: Session, number: int) -> None:
    """Forget a child, and cancel it if it has not ended."""
    session.children.table.remove(number).release()


def _parse(arguments: str) -> dict[str, Any]:
    try:
        found: object = json.loads(arguments)
    except (ValueError, RecursionError) as error:
        raise BadArgumentError(
            f"the arguments of a child are no JSON: {error}"
        ) from None
    if not isinstance(found, dict):
        raise BadArgumentError("the arguments of a child are a JSON object, by name")
    return cast("dict[str, Any]", found)


INTERFACE = interface(
    "children",
    {
        "spawn": fallible(spawn, U32, U32, STRING, STRING),
        "send-child": fallible(send_child, Option(U32), U32, MESSAGE),
        "receive-child": fallible(receive_child, U32, U32),
        "take-child-message": waiting(take_child_message, Option(MESSAGE), U32),
        "wait-child": fallible(wait_child, U32, U32),
        "take-outcome": waiting(take_outcome, OUTCOME, U32),
        "cancel-child": fallible(cancel_child, Unit(), U32),
        "release-child": fallible(release_child, Unit(), U32),
    },
    types={"outcome": OUTCOME},
)
