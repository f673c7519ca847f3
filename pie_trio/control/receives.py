"""Those who wait for the next message of an inbox or a mailbox, and how large a message is.

A receive has two halves, because between them stands a ticket that its inferlet may cancel:
it is *told* that there is a message, and later it *takes* one. A message leaves its queue in
the second half only, so no cancellation loses one. One receive at a time is told. What it was
told stays true until it has taken, whatever else arrives or is dropped, and messages are taken
in order.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from pie_trio.control.outbox import Message

__all__ = ["Receive", "ReceiveQueue", "message_bytes"]

T = TypeVar("T")


def message_bytes(message: Message) -> int:
    """Return the bytes of a message, as UTF-8 where it is text."""
    if isinstance(message, bytes) or message.isascii():
        return len(message)
    return len(message.encode(errors="surrogatepass"))


class Receive(Generic[T]):
    """One wait for a message, which :meth:`take` or :meth:`cancel` ends."""

    def __init__(self, queue: ReceiveQueue[T], on_ready: Callable[[], None]) -> None:
        self._queue, self.on_ready = queue, on_ready

    @property
    def is_ready(self) -> bool:
        """Whether :meth:`take` may be called."""
        return self._queue.is_told(self)

    def take(self) -> T:
        """Return the oldest message. Only once, after ``on_ready`` was called."""
        assert self.is_ready, "a receive is taken once, after it was told of a message"
        return self._queue.finish(self)

    def cancel(self) -> None:
        """Let the message, if there is one, go to the next who waits; does nothing later."""
        self._queue.withdraw(self)


class ReceiveQueue(Generic[T]):
    """The receives of one source of messages, first come, first served.

    Args:
        has_next: Says whether ``take_next`` may be called. While a receive has been told and
            has not taken, this may not become false.
        take_next: Removes and returns what a receive gets.
    """

    def __init__(
        self, *, has_next: Callable[[], bool], take_next: Callable[[], T]
    ) -> None:
        self._has_next, self._take_next = has_next, take_next
        self._waiting: deque[Receive[T]] = deque()
        self._told: Receive[T] | None = None

    def __len__(self) -> int:
        return len(self._waiting) + (self._told is not None)

    def add(self, on_ready: Callable[[], None]) -> Receive[T]:
        """Wait for a message; ``on_ready`` is called at once where one is there."""
        receive = Receive(self, on_ready)
        self._waiting.append(receive)
        self.tell_next()
        return receive

    def tell_next(self) -> None:
        """Tell the next receive; called when something has arrived."""
        if self._told is None and self._waiting and self._has_next():
            self._told = self._waiting.popleft()
            self._told.on_ready()

    def is_told(self, receive: Receive[T]) -> bool:
        """Say whether a receive has been told and has neither taken nor been cancelled."""
        return self._told is receive

    def finish(self, receive: Receive[T]) -> T:
        """Give the receive that was told its message, and tell the next."""
        assert self._told is receive, "checked by its take"
        taken = self._take_next()
        self._told = None
        self.tell_next()
        return taken

    def withdraw(self, receive: Receive[T]) -> None:
        """Forget a receive and tell the next in its place."""
        if self._told is receive:
            self._told = None
            self.tell_next()
        elif receive in self._waiting:
            self._waiting.remove(receive)
