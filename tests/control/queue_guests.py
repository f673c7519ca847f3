"""Inferlets with queues, and a record of all that becomes of their commands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import trio

from pie_trio.control.commands import Command, Kind
from pie_trio.control.queues import CommandQueue
from pie_trio.engine_api import PageCopy
from tests.control.guests import Guest

if TYPE_CHECKING:
    from collections.abc import Callable

    from pie_trio.control.pages import PagePool
    from pie_trio.control.served_model import ServedModel
    from tests.control.engines import Outcome
    from tests.control.guests import World
    from tests.control.one_by_one import PlainEmbed, PlainPage


@dataclass(eq=False)
class Submitted:
    """A command on its way.

    Attributes:
        uses: What it used when it was submitted.
        writes: What it wrote then.
        is_unwanted: It was withdrawn before its last step.
    """

    command: Command
    queue: CommandQueue
    uses: frozenset[int]
    writes: frozenset[int]
    outcomes: list[Outcome] = field(default_factory=list["Outcome"])
    is_unwanted: bool = False

    @property
    def is_done(self) -> bool:
        return bool(self.outcomes)

    def conflicts(self, other: Submitted) -> bool:
        """Say whether the two must keep their order."""
        return bool(self.writes & other.uses or other.writes & self.uses)


@dataclass(eq=False)
class Barrier:
    """A synchronize, and the commands that it waits for."""

    before: list[Submitted]
    num_calls: int = 0
    is_taken_away: bool = False
    take_away: Callable[[], None] = lambda: None

    @property
    def is_due(self) -> bool:
        return all(other.is_done for other in self.before)


class Record:
    """All commands of a world, in order, and what should not have been.

    Args:
        pool: Their pages.
        may_lose_copies: Says whether a command that has ended may have left its copies undone.

    Attributes:
        unfinished: By the record itself, not by the batcher.
        wrong: Where outcomes came twice or out of order. Errors in ``on_done`` are caught by
            the batcher, so they are kept here.
    """

    def __init__(
        self, pool: PagePool, may_lose_copies: Callable[[Command], bool]
    ) -> None:
        self._pool, self._may_lose_copies = pool, may_lose_copies
        self.unfinished: list[Submitted] = []
        self.wrong: list[str] = []

    def add(self, submitted: Submitted) -> None:
        self.unfinished.append(submitted)

    def finish(self, submitted: Submitted, outcome: Outcome) -> None:
        submitted.outcomes.append(outcome)
        if submitted not in self.unfinished:
            self.wrong.append("a command ended twice")
            return
        if not self.is_ready(submitted):
            self.wrong.append("a command ended before one that it must come after")
        command = submitted.command
        is_held = any(self._pool.num_owners(copy.target) for copy in command.copies)
        if is_held and not command.is_copied and not self._may_lose_copies(command):
            self.wrong.append("the page of a handle has lost what it held")
        self.unfinished.remove(submitted)
        submitted.queue.finish(command)

    def is_ready(self, submitted: Submitted) -> bool:
        """Say whether no unfinished command before this one is in its way."""
        before = self.unfinished[: self.unfinished.index(submitted)]
        return not any(other.conflicts(submitted) for other in before)


class QueueGuest(Guest):
    """An inferlet whose commands go through queues.

    Attributes:
        plain: By handle, what it stands for in the reference.
        embeds: Slots, and what they stand for in the reference.
        stored: Those that a forward was to write.
        latest: What was submitted last.
    """

    def __init__(self, world: World, record: Record, age: int) -> None:
        super().__init__(world, age)
        self.record = record
        self.queues: list[CommandQueue] = []
        self.queue = self.open_queue()
        self.plain: dict[int, PlainPage] = {}
        self.embeds: dict[int, PlainEmbed] = {}
        self.stored: dict[int, PlainEmbed] = {}
        self.latest: Submitted
        self.on_close: Callable[[], None] = lambda: None

    def open_queue(self) -> CommandQueue:
        queue = CommandQueue(cast("ServedModel", None), len(self.queues))
        self.queues.append(queue)
        return queue

    def copy(self, source: int, target: int, start: int, into: int, count: int) -> None:
        """Submit a copy of tokens from one page to another."""
        pool, table = self.world.pool, self.table
        old, page = table.get(source), table.get(target)
        new = pool.make_writable(page)
        copies: list[PageCopy] = []
        if new != page:
            table.replace(target, new)
            copies.append(PageCopy(page, new, 0, 0, pool.page_size))
            old = new if source == target else old
        copies.append(PageCopy(old, new, start, into, count))
        moved = pool.positions[old, start : start + count].copy()
        pool.positions[new, into : into + count] = moved
        pages = {page for copy in copies for page in (copy.source, copy.target)}
        self._submit(
            Kind.COPY,
            pages=np.array(sorted(pages)),
            writes=(new,),
            copies=tuple(copies),
        )

    def close(self) -> None:
        if not self.is_closed:
            self.on_close()
        super().close()

    def _submit(self, kind: Kind, **details: Any) -> int:
        details["priority"] = self.queue.priority
        command = Command(
            kind,
            self.tenant,
            on_done=lambda outcome: self.record.finish(submitted, outcome),
            submitted_at=trio.current_time(),
            queue=self.queue.number,
            **details,
        )
        uses, writes = frozenset(command.uses), frozenset(command.writes)
        submitted = self.latest = Submitted(command, self.queue, uses, writes)
        self.record.add(submitted)
        self.queue.add(command)
        self.world.batcher.submit(command)
        return 0
