"""What happened: every command, every step and every page, in bounded memory.

Always on, so that it must cost next to nothing: 0.2 us a command, 0.3 us a page event. What is
kept of them are plain tuples of plain values, which are made four times as fast as named ones, and
which the garbage collector soon stops looking at. They become records when somebody reads them.
"""

from __future__ import annotations

from collections import deque
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

from pie_trio.control.commands import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pie_trio.control.commands import Command

__all__ = ["CommandRecord", "PageRecord", "StepRecord", "Trace"]

MAX_COMMANDS = 1 << 16
MAX_STEPS = 1 << 14
MAX_PAGE_EVENTS = 1 << 16

KIND_NAMES = [kind.name for kind in Kind]


class CommandRecord(NamedTuple):
    """One command that finished. Times are on trio's clock, in seconds.

    Attributes:
        tenant: Name of the inferlet.
        queue: Its queue's number.
        ticket: Its ticket; 0 for those that it holds no ticket of.
        kind: ``FORWARD``, ``PROJECT`` or ``COPY``.
        num_tokens: New tokens of a forward.
        submitted_at: When it came to the batcher.
        batched_at: When its (last) batch was chosen; 0 if it never was.
        started_at: When its first batch started on the device; 0 if it never ran.
        finished_at: When its outcome was known.
        step: Number of its last step; 0 if it never ran.
        batch_size: Commands in that step; 0 if that is not known any more.
        outcome: ``ok``, or the class of the error.
    """

    tenant: str
    queue: int
    ticket: int
    kind: str
    num_tokens: int
    submitted_at: float
    batched_at: float
    started_at: float
    finished_at: float
    step: int
    batch_size: int
    outcome: str


class StepRecord(NamedTuple):
    """One step of the device.

    Attributes:
        number: Counted from 1.
        kind: Of its commands.
        size: How many they were.
        num_tokens: New tokens in it.
        gathering_since: When the device was idle and something was ready.
        chosen_at: When the batch was chosen.
        finished_at: When it had ended.
        num_ready: Commands that were ready then.
        late: Inferlets that were about to submit and did not in time.
        num_other_kind: Ready commands of another kind.
        num_over_budget: Ready commands that the limits of a batch kept out.
        num_without_pages: Ready commands for which pages were lacking.
        num_blocked: Commands that waited for others.
        num_free_pages: Pages that were free while it ran.
        policy: Of batching.
    """

    number: int
    kind: str
    size: int
    num_tokens: int
    gathering_since: float
    chosen_at: float
    finished_at: float
    num_ready: int
    late: tuple[str, ...]
    num_other_kind: int
    num_over_budget: int
    num_without_pages: int
    num_blocked: int
    num_free_pages: int
    policy: str


class PageRecord(NamedTuple):
    """A page got or lost its place on the device.

    Who has a physical page is who bound the virtual page in it last, and those with whom that
    one has shared it.

    Attributes:
        at: On trio's clock.
        event: ``bind``, ``unbind``, ``swap out`` or ``swap in``.
        page: The virtual page.
        place: The physical page; negative where it was unbound in host memory.
        tenant: Of ``bind``: the inferlet whose command writes it; else empty.
    """

    at: float
    event: str
    page: int
    place: int
    tenant: str


class Trace:
    """The latest commands, steps and page events of one model; older ones go first.

    Args:
        clock: Returns the time.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._commands: deque[tuple[Any, ...]] = deque(maxlen=MAX_COMMANDS)
        self._steps: deque[StepRecord] = deque(maxlen=MAX_STEPS)
        self._pages: deque[tuple[float, str, int, int, str]] = deque(
            maxlen=MAX_PAGE_EVENTS
        )
        self._size_of_step = (0, 0)  # the latest one's number, and its size

    def note_step(self, step: StepRecord) -> None:
        """Append a step, before the commands that finish with it."""
        self._steps.append(step)
        self._size_of_step = step[0], step[2]

    def note_command(
        self, command: Command, outcome: object, finished_at: float
    ) -> None:
        """Append a command that has finished."""
        forward = command.forward
        number, size = self._size_of_step
        batch = command.batch
        self._commands.append(
            (
                command.tenant.name,
                command.queue,
                command.ticket,
                KIND_NAMES[command.kind],
                0 if forward is None else len(forward.token_ids),
                command.submitted_at,
                command.batched_at,
                command.started_at,
                finished_at,
                batch,
                size if batch == number else 0,
                type(outcome).__name__ if isinstance(outcome, Exception) else "ok",
            )
        )

    def note_page(self, event: str, page: int, place: int, tenant: str) -> None:
        """Append what has happened to a page: see :class:`PageRecord`."""
        self._pages.append((self._clock(), event, page, place, tenant))

    @property
    def commands(self) -> Iterator[CommandRecord]:
        """The commands, oldest first."""
        return map(CommandRecord._make, list(self._commands))

    @property
    def steps(self) -> list[StepRecord]:
        """The steps, oldest first."""
        return list(self._steps)

    def latest_commands(self, count: int) -> list[CommandRecord]:
        """Return so many of the commands, oldest first, without a look at all others."""
        latest = list(islice(reversed(self._commands), count))
        return [CommandRecord._make(command) for command in reversed(latest)]

    def commands_after(self, finished_at: float) -> list[CommandRecord]:
        """Return the commands that finished later than that, newest first."""
        later = takewhile(lambda c: c[8] > finished_at, reversed(self._commands))
        return [CommandRecord._make(command) for command in later]

    def steps_after(self, number: int) -> list[StepRecord]:
        """Return the steps with higher numbers, newest first."""
        return list(takewhile(lambda step: step[0] > number, reversed(self._steps)))

    @property
    def pages(self) -> Iterator[PageRecord]:
        """What happened to pages, oldest first."""
        return map(PageRecord._make, list(self._pages))
