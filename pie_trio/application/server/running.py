"""One instance as its clients see it: events to read, messages to send, an end to wait for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal, Self

import trio

from pie_trio.application.host.debugging import answer_usage
from pie_trio.errors import CancelledError

if TYPE_CHECKING:
    from pie_trio.application.host.instance_log import InstanceLog, LogLine
    from pie_trio.application.host.session import Session
    from pie_trio.application.server.events import Batch, EventLog
    from pie_trio.application.server.owners import Owner
    from pie_trio.control.outbox import Message

__all__ = ["EventReader", "RunningInstance", "State"]

State = Literal["running", "succeeded", "failed", "cancelled"]

CLIENT_LEFT = "the client that launched it has left"
NOT_FETCHED = "the client that launched it has not asked for its events in time"


class RunningInstance:
    """One instance, from its launch until it is forgotten some time after its end.

    Made by :meth:`~pie_trio.application.server.registry.InstanceRegistry.launch`.

    Attributes:
        instance_id: Unique on the server.
        program: Name of its program.
        owner: On whose behalf it runs.
        launched_at: In seconds since 1970.
        launched_clock: The same on trio's clock.
        ended_clock: When it ended, on trio's clock; None while it runs.
        first_event_clock: When it first told something.
        first_token_clock: When its first token had been sampled; None until it has ended.
        state: ``succeeded`` if it returned, ``cancelled`` if it was ended from outside.
        is_detached: It outlives the client that launched it.
        events: What it has told.
        log: Its latest lines.
    """

    def __init__(
        self,
        session: Session,
        program: str,
        owner: Owner,
        events: EventLog,
        *,
        is_detached: bool,
    ) -> None:
        self.instance_id = session.launch.instance_id
        self.program, self.owner = program, owner
        self.launched_at, self.launched_clock = time.time(), trio.current_time()
        self.ended_clock: float | None = None
        self.first_event_clock: float | None = None
        self.first_token_clock: float | None = None
        self.state: State = "running"
        self.is_detached = is_detached
        self.events = events
        self.log: InstanceLog = session.log
        self.scope = trio.CancelScope()
        self.end_reason: CancelledError | None = None
        self.is_attached = trio.Event()
        self._session: Session | None = session
        self._final_tokens: dict[str, int] = {}
        self._num_lines_lost = 0
        self._is_receiving = False
        self._line_or_end = trio.Event()
        self._ended_running = trio.Event()
        self._ended = trio.Event()
        session.outbox.pass_on(self._take_message)
        if not is_detached:
            events.hold(0)

    # ---- for clients -----------------------------------------------------------------

    def attach(self, after: int = 0) -> EventReader:
        """Return a reader of its events, to be used in a ``with`` block.

        The first reader of an instance that is not detached is its client: what the client does
        not read holds the instance up, and when the block is left, the instance is cancelled
        unless it was detached or has ended. All others just listen; what they read too late,
        they miss.

        Args:
            after: Number of the event after which to begin.
        """
        return EventReader(self, after)

    async def send(self, message: Message) -> bool:
        """Send it a message, and wait until it has room for it.

        Returns:
            Whether it will receive it; if not, it has ended, or its input has.

        Raises:
            LimitError: The message is too large.
        """
        return self._session is not None and await self._session.inbox.put(message)

    def end_input(self) -> None:
        """Let it know that no more messages will be sent; again does nothing."""
        if self._session is not None:
            self._session.inbox.end()

    def cancel(self, reason: str = "it was cancelled") -> None:
        """Have the program cancelled; the first reason counts. Nothing if it has ended.

        It may clean up for as long as its limit ``grace_seconds`` says.
        """
        if self.state != "running":
            return
        if self.end_reason is None:
            self.end_reason = CancelledError(reason)
        if self._session is not None:
            self._session.stop(self.end_reason)

    def kill(self, reason: str = "it was killed") -> None:
        """End it where it stands; the first reason counts. Nothing if it has ended."""
        if self.state == "running":
            if self.end_reason is None:
                self.end_reason = CancelledError(reason)
            self.scope.cancel()

    def detach(self) -> None:
        """Let it outlive the client that launched it."""
        self.is_detached = True
        self.events.let_go()

    async def wait_ended(self) -> None:
        """Wait until all its events are there."""
        await self._ended.wait()

    async def wait_ended_running(self) -> None:
        """Wait until it runs no more and everything it held was given back.

        Its last messages may still wait for the client.
        """
        await self._ended_running.wait()

    async def wait_line(self) -> None:
        """Wait for a line of the log, or the end of it."""
        await self._line_or_end.wait()

    def status(self) -> dict[str, Any]:
        """Return what it is and what it holds, as JSON can carry it."""
        end = trio.current_time() if self.ended_clock is None else self.ended_clock
        return {
            "id": self.instance_id,
            "program": self.program,
            "owner": self.owner.name,
            "state": self.state,
            "detached": self.is_detached,
            "launched_at": self.launched_at,
            "seconds": end - self.launched_clock,
            "last_event": self.events.last_number,
            **self.usage(),
            "charged": {} if self._session is None else answer_usage(self._session),
        }

    def usage(self) -> dict[str, int]:
        """Return what it holds and has used so far."""
        if self._session is None or self.ended_clock is not None:
            return {"pages": 0, "commands_in_flight": 0, **self._final_tokens}
        session = self._session
        tables = session.pages.values()
        return {
            "pages": sum(len(set(table.values())) for table in tables),
            "commands_in_flight": session.in_flight.count,
            **_count_tokens(session),
        }

    # ---- for the registry ------------------------------------------------------------

    def add_line(self, line: LogLine) -> None:
        """Tell clients a line of the log; lines that nobody takes are counted instead."""
        self._tell_line()
        self._note_told()
        if self.events.is_full:
            self._num_lines_lost += 1
            return
        data: dict[str, Any] = {"source": line.source, "text": line.text, "at": line.at}
        if self._num_lines_lost:
            data["lost"] = self._num_lines_lost
            self._num_lines_lost = 0
        self.events.append("log", data)

    def note_receiving(self) -> None:
        """Tell clients, once, that it waits for a message."""
        if not self._is_receiving:
            self._is_receiving = True
            self.events.append("receiving", {})

    async def pump(self) -> None:
        """Make events of its messages until there are no more."""
        assert self._session is not None, "it runs"
        outbox = self._session.outbox
        while True:
            await self.events.wait_room()
            messages = await outbox.take()
            if not messages:
                return
            self._note_told()
            for message in messages:
                self.events.append("message", message)

    def finish_running(self, state: State) -> None:
        """Note that it has ended; its last messages may still wait for the client."""
        self.state = state
        self._note_told()
        self.ended_clock = trio.current_time()
        if self._session is not None:
            self._final_tokens = _count_tokens(self._session)
            sampled = [t.first_sampled_at for t in self._session.tenants.values()]
            self.first_token_clock = min(
                (at for at in sampled if at is not None), default=None
            )
        self._tell_line()
        self._ended_running.set()

    def finish(self) -> None:
        """Note that all its events are there."""
        assert self.ended_clock is not None, "it has ended before"
        seconds = self.ended_clock - self.launched_clock
        self.events.append(
            "end", {"state": self.state, "seconds": seconds, **self._final_tokens}
        )
        self.events.close()
        self._session = None  # what it holds on to can go
        self._ended.set()

    def _take_message(self, message: Message) -> bool:
        """Make an event of a message at once if there is room for it."""
        if self.events.is_full:
            return False
        self._note_told()
        self.events.append("message", message)
        return True

    def _note_told(self) -> None:
        if self.first_event_clock is None:
            self.first_event_clock = trio.current_time()

    def _tell_line(self) -> None:
        self._line_or_end.set()
        self._line_or_end = trio.Event()


class EventReader:
    """Reads the events of an instance. Made by :meth:`RunningInstance.attach`.

    It iterates over :class:`~pie_trio.application.server.events.Batch`, each with all that is
    there, and ends after the event ``end``.

    Attributes:
        instance: Whose events.
        after: Number of the last event that was read.
        num_lost: Events that were read too late, in all.
    """

    def __init__(self, instance: RunningInstance, after: int) -> None:
        self.instance, self.after = instance, after
        self.num_lost = 0
        self._is_client = False

    def __enter__(self) -> Self:
        # Not before: a stream whose client has left already is never begun.
        is_first = not self.instance.is_attached.is_set()
        self._is_client = is_first and not self.instance.is_detached
        self.instance.is_attached.set()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_client and not self.instance.is_detached:
            self.instance.cancel(CLIENT_LEFT)
            self.instance.events.let_go()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Batch:
        """Return the next events, once there are some; those before count as taken."""
        while (batch := self.take()) is None:
            if self.is_over:
                raise StopAsyncIteration
            await self.wait()
        return batch

    @property
    def is_over(self) -> bool:
        """Whether all events were read."""
        events = self.instance.events
        return events.is_closed and events.last_number <= self.after

    def take(self) -> Batch | None:
        """Return the events that are there, if any; those before count as taken."""
        events = self.instance.events
        if self._is_client and not self.instance.is_detached:
            events.hold(self.after)
        batch = events.take(self.after)
        if batch is not None:
            self.after = batch.events[-1].number
            self.num_lost += batch.num_lost
        return batch

    async def wait(self) -> None:
        """Wait until there are events to take, or all were."""
        await self.instance.events.wait(self.after)


def _count_tokens(session: Session) -> dict[str, int]:
    tenants = session.tenants.values()
    return {
        "tokens_computed": sum(tenant.num_tokens for tenant in tenants),
        "tokens_sampled": sum(tenant.num_sampled for tenant in tenants),
    }
