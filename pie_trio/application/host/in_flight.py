"""An instance's commands between submission and the end of their batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from pie_trio.control.commands import NO_PAGES, Command, Kind
from pie_trio.errors import LimitError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pie_trio.application.host.session import Session
    from pie_trio.control.pages import PageIds
    from pie_trio.control.processors import Processor
    from pie_trio.control.queues import CommandQueue
    from pie_trio.control.quotas import Share
    from pie_trio.engine_api import (
        ForwardRequest,
        PageCopy,
        ProjectRequest,
        RequestResult,
    )

__all__ = ["InFlight", "check_room", "submit"]


class InFlight:
    """Counts commands that have not finished; withdrawn ones count until they are passed over.

    Args:
        share: Of the quotas that count them too.
        max_mask_bytes: Of their masks.
    """

    def __init__(self, share: Share, max_mask_bytes: int) -> None:
        self.count = self.mask_bytes = 0
        self.share = share
        self.max_mask_bytes = max_mask_bytes
        self._all_finished = trio.Event()

    @property
    def mask_room(self) -> int:
        """Bytes, or entries, that a mask may have now."""
        own = self.max_mask_bytes - self.mask_bytes
        return min(own, self.share.room("mask_bytes"))

    def add(self, mask_bytes: int = 0) -> None:
        """Count one more."""
        self.count += 1
        self.share.take("commands_in_flight")
        if mask_bytes:
            self.mask_bytes += mask_bytes
            self.share.take("mask_bytes", mask_bytes)

    def remove(self, mask_bytes: int = 0) -> None:
        """Count one less."""
        self.count -= 1
        self.share.give("commands_in_flight")
        if mask_bytes:
            self.mask_bytes -= mask_bytes
            self.share.give("mask_bytes", mask_bytes)
        if self.count == 0:
            self._all_finished.set()

    async def wait_finished(self) -> None:
        """Wait until there are none."""
        while self.count:
            self._all_finished = trio.Event()
            await self._all_finished.wait()


def check_room(session: Session) -> None:
    """Raise unless the instance may submit one more command.

    Raises:
        LimitError: It may not.
    """
    session.tickets.check_room()
    if session.in_flight.count >= session.limits.max_in_flight:
        raise LimitError(
            f"{session.in_flight.count} commands have not finished, which is as many as an "
            "inferlet may have; withdrawn ones count until the device gets to them"
        )
    session.in_flight.share.check("commands_in_flight", 1)


def submit(
    session: Session,
    queue: CommandQueue,
    kind: Kind,
    *,
    writes: Iterable[int],
    pages: PageIds = NO_PAGES,
    forward: ForwardRequest | None = None,
    project: ProjectRequest | None = None,
    copies: tuple[PageCopy, ...] = (),
    embeds: tuple[int, ...] = (),
    processors: Sequence[Processor] = (),
) -> int:
    """Enqueue a command, after :func:`check_room`, and return its ticket.

    The arguments are those of :class:`Command`, but for ``processors``: those that it uses.
    """
    model, tickets = queue.model, session.tickets
    ticket = tickets.open(lambda: command.withdraw())

    mask = forward.mask if forward is not None else None
    mask_bytes = 0 if mask is None else mask.nbytes

    def on_done(outcome: RequestResult | Exception | None) -> None:
        session.in_flight.remove(mask_bytes)
        queue.finish(command)
        for processor in processors:
            processor.release()
        tickets.complete(ticket, outcome, model)

    command = Command(
        kind,
        session.tenants[model.info.name],
        pages=pages,
        writes=writes,
        on_done=on_done,
        submitted_at=trio.current_time(),
        forward=forward,
        project=project,
        copies=copies,
        embeds=embeds,
        priority=queue.priority,
        queue=queue.number,
        ticket=ticket,
    )
    for processor in processors:
        processor.use()
    session.in_flight.add(mask_bytes)
    queue.add(command)
    model.batcher.submit(command)
    return ticket
