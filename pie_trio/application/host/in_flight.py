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
        ModelInfo,
        OutputSpec,
        PageCopy,
        ProjectRequest,
        RequestResult,
    )

__all__ = ["Held", "InFlight", "check_room", "request_bytes", "result_bytes", "submit"]

COMMAND_BYTES = 2048
"""Of a command with its ticket and its request, without what it names."""

PAGE_BYTES = 128
"""For each page that a command names: in arrays, and in the sets that put commands in order."""

TOKEN_BYTES = 8
"""With its position."""


class Held:
    """Bytes that are kept for a command until all who keep them have let go.

    Args:
        in_flight: Counts them.
        num_bytes: How many.
        count: Of those who keep them.
    """

    __slots__ = ("_count", "_in_flight", "num_bytes")

    def __init__(self, in_flight: InFlight, num_bytes: int, count: int) -> None:
        self._in_flight, self.num_bytes, self._count = in_flight, num_bytes, count
        in_flight.command_bytes += num_bytes
        in_flight.share.take("command_bytes", num_bytes)

    def let_go(self) -> None:
        """Note that one of them keeps them no more."""
        self._count -= 1
        if not self._count:
            self._in_flight.command_bytes -= self.num_bytes
            self._in_flight.share.give("command_bytes", self.num_bytes)


class InFlight:
    """Counts commands that have not finished; withdrawn ones count until they are passed over.

    Args:
        share: Of the quotas that count them too.
        max_mask_bytes: Of their masks.
        max_command_bytes: Of all else that is kept for them.

    Attributes:
        command_bytes: What is kept for them, and of their results.
    """

    def __init__(
        self, share: Share, max_mask_bytes: int, max_command_bytes: int
    ) -> None:
        self.count = self.mask_bytes = self.command_bytes = 0
        self.share = share
        self.max_mask_bytes = max_mask_bytes
        self.max_command_bytes = max_command_bytes
        self._all_finished = trio.Event()

    @property
    def mask_room(self) -> int:
        """Bytes, or entries, that a mask may have now."""
        own = self.max_mask_bytes - self.mask_bytes
        return min(own, self.share.room("mask_bytes"))

    def check_bytes(self, num_bytes: int) -> None:
        """Raise unless so many more may be kept for a command.

        Raises:
            LimitError: They may not.
        """
        if self.command_bytes + num_bytes > self.max_command_bytes:
            raise LimitError(
                f"commands and their results would take {self.command_bytes + num_bytes} "
                f"bytes, but an inferlet may have {self.max_command_bytes}: take results, close "
                "streams, or ask for less at once"
            )
        self.share.check("command_bytes", num_bytes)

    def add(self, mask_bytes: int = 0) -> None:
        """Count one more."""
        self.count += 1
        self.share.take("commands_in_flight")
        if mask_bytes:
            self.add_mask(mask_bytes)

    def add_mask(self, mask_bytes: int) -> None:
        """Count the mask of one that is counted."""
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


def request_bytes(num_pages: int, num_tokens: int) -> int:
    """Return what is kept for a command that names so many pages and tokens."""
    return COMMAND_BYTES + PAGE_BYTES * num_pages + TOKEN_BYTES * num_tokens


def result_bytes(outputs: Iterable[OutputSpec], info: ModelInfo) -> int:
    """Return the most that the results of these outputs take."""
    total = 0
    for spec in outputs:
        a_row = 12 + 8 * spec.top_k  # token, log-probability, entropy, distribution
        if spec.logits:
            a_row += 4 * info.vocab_size
        if spec.hidden:
            a_row += 4 * info.hidden_size
        total += len(spec.rows) * a_row
    return total


def check_room(session: Session, num_bytes: int = 0, num_tokens: int = 0) -> None:
    """Raise unless the instance may submit one more command.

    Args:
        session: Of the instance.
        num_bytes: That are kept for the command and its result.
        num_tokens: That it computes.

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
    if num_bytes:
        session.in_flight.check_bytes(num_bytes)
    if num_tokens:
        session.tree.totals.check("tokens", num_tokens)


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
    num_bytes: int = COMMAND_BYTES,
) -> int:
    """Enqueue a command, after :func:`check_room`, and return its ticket.

    The arguments are those of :class:`Command`, but for ``processors``, those that it uses, and
    ``num_bytes``, which are kept until it has finished and its ticket is closed.
    """
    model, tickets = queue.model, session.tickets
    held = Held(session.in_flight, num_bytes, 2)
    ticket = tickets.open(lambda: command.withdraw(), on_close=held.let_go)

    mask, num_tokens = None, 0
    if forward is not None:
        mask, num_tokens = forward.mask, len(forward.token_ids)
    mask_bytes = 0 if mask is None else mask.nbytes
    totals = session.tree.totals

    def on_done(outcome: RequestResult | Exception | None) -> None:
        session.in_flight.remove(mask_bytes)
        held.let_go()
        if isinstance(outcome, Exception):
            totals.add("tokens", -num_tokens)
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
    totals.add("tokens", num_tokens)
    queue.add(command)
    model.batcher.submit(command)
    return ticket
