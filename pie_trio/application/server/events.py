"""What an instance tells its clients: numbered events, kept for those who come later. Bounded."""

from __future__ import annotations

import base64
import json
import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import trio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pie_trio.control.outbox import Message

__all__ = ["Batch", "Event", "EventKind", "EventLog", "event_fields"]

EventKind = Literal["started", "receiving", "message", "log", "result", "error", "end"]

EVENT_OVERHEAD_BYTES = 64
"""So that many empty events count too."""
MAX_BATCH_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Attributes:
        number: Counted from 1 in each instance.
        kind: What ``data`` is.
        data: A message for ``message``; else what JSON can carry, by name.
        size: Bytes that it takes, about.
    """

    number: int
    kind: EventKind
    data: Message | Mapping[str, Any]
    size: int


def event_fields(event: Event) -> dict[str, Any]:
    """Return an event's data as JSON can carry it; binary messages in base 64."""
    if isinstance(event.data, str):
        return {"text": event.data}
    if isinstance(event.data, bytes):
        return {"binary": base64.b64encode(event.data).decode()}
    return dict(event.data)


@dataclass(frozen=True, slots=True)
class Batch:
    """Events in order.

    Attributes:
        events: At least one, unless some were lost.
        num_lost: Events before these that are not kept any more.
    """

    events: Sequence[Event]
    num_lost: int


class EventLog:
    """The events of one instance.

    At most one reader *holds* the log: what it has not taken is kept, and whoever appends
    messages waits for it. Everybody else takes what is there.

    Args:
        max_events: That are kept; and most that wait for the holder, beyond which it is full.
        max_bytes: The same for their size.
    """

    def __init__(self, *, max_events: int, max_bytes: int) -> None:
        self._max_events, self._max_bytes = max_events, max_bytes
        self._events: deque[Event] = deque()
        self.num_bytes = 0
        self._next_number = 1
        self._held_after: float = (
            math.inf
        )  # the number up to which the holder has taken
        self._waiting_bytes = 0  # of the events after that
        self._changed: trio.Event | None = None  # while anybody waits
        self._room = trio.Event()
        self.is_closed = False

    @property
    def last_number(self) -> int:
        """Of the latest event; 0 if there is none."""
        return self._next_number - 1

    @property
    def is_full(self) -> bool:
        """Whether the holder has to take something first."""
        return self._held_after < math.inf and (
            self.last_number - self._held_after >= self._max_events
            or self._waiting_bytes >= self._max_bytes
        )

    def append(self, kind: EventKind, data: Message | Mapping[str, Any]) -> None:
        """Append an event."""
        raw = data if isinstance(data, str | bytes) else json.dumps(data)
        size = len(raw) + EVENT_OVERHEAD_BYTES
        self._events.append(Event(self._next_number, kind, data, size))
        self._next_number += 1
        self.num_bytes += size
        self._waiting_bytes += size
        self._trim()
        self._tell()

    def close(self) -> None:
        """Say that there will be no more."""
        self.is_closed = True
        self._tell()

    def hold(self, after: int) -> None:
        """Note that the holder has taken everything up to a number."""
        if after == self._held_after:
            return  # as after each look that has found nothing
        self._held_after = after
        # Mostly there is nothing after it: who holds the log takes all there is.
        left = self._after(after) if after < self.last_number else ()
        self._waiting_bytes = sum(event.size for event in left)
        self._trim()
        self._room.set()

    def let_go(self) -> None:
        """Note that nobody holds the log any more."""
        self._held_after = math.inf
        self._trim()
        self._room.set()

    async def wait_room(self) -> None:
        """Wait until the log is not full."""
        while self.is_full:
            self._room = trio.Event()  # one task waits here: who appends messages
            await self._room.wait()

    async def read(self, after: int) -> Batch | None:
        """Wait for events after a number, and return those there are, up to 64 KiB.

        Returns:
            None when there are none and will be none.
        """
        await self.wait(after)
        return self.take(after)

    async def wait(self, after: int) -> None:
        """Wait for events after a number, or until there will be none."""
        while self.last_number <= after and not self.is_closed:
            if self._changed is None:
                self._changed = trio.Event()
            await self._changed.wait()

    def take(self, after: int) -> Batch | None:
        """Return the events after a number that there are, up to 64 KiB; None for none."""
        if after >= self.last_number:
            return None
        found = list[Event]()
        size = 0
        for event in self._after(after):
            size += event.size
            if found and size > MAX_BATCH_BYTES:
                break
            found.append(event)
        if not found:
            return None
        return Batch(found, found[0].number - after - 1)

    def _tell(self) -> None:
        """Wake all who wait; whoever waits next waits for the next change."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def _after(self, number: int) -> list[Event]:
        first = self._events[0].number if self._events else 0
        skip = max(0, number + 1 - first)
        return [self._events[i] for i in range(skip, len(self._events))]

    def _trim(self) -> None:
        """Forget what is too old, but nothing that the holder has not taken."""
        while len(self._events) > 1 and (
            len(self._events) > self._max_events or self.num_bytes > self._max_bytes
        ):
            if self._events[0].number > self._held_after:
                return
            self.num_bytes -= self._events.popleft().size
