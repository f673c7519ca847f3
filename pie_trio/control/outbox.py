"""What an inferlet has sent and its client has not taken yet: bounded, and it holds no pages."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio

from pie_trio.control.quotas import Share
from pie_trio.errors import LimitError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Message", "Outbox"]

Message = str | bytes

MAX_LATE = 4096
"""Messages outside of an outbox; their tickets may be closed already."""


class Outbox:
    """Messages of one inferlet, in order.

    Args:
        max_unread: Beyond this, messages wait for the client outside of the outbox.
        max_bytes: The same for their size; those that wait may have as much once more, and be
            ``MAX_LATE``.
        share: Of the quotas that count their size too. An outbox that is empty takes one whatever
            they say, so that each goes on.
    """

    def __init__(
        self, *, max_unread: int, max_bytes: int, share: Share | None = None
    ) -> None:
        self.max_unread, self.max_bytes = max_unread, max_bytes
        self._share = share or Share()
        self._messages: deque[Message] = deque()
        self._num_bytes = 0
        self._late: dict[int, tuple[Message, Callable[[], None]]] = {}  # in order
        self._late_bytes = 0
        self._next_late = 0
        self._is_closed = False
        self._changed = trio.Event()
        self._pass_on: Callable[[Message], bool] = lambda _: False

    def pass_on(self, call: Callable[[Message], bool]) -> None:
        """Offer each message to ``call`` first, unless others wait.

        It says whether it has taken the message. That saves a task between a program and whoever
        keeps what it says.
        """
        self._pass_on = call

    def put(self, message: Message) -> bool:
        """Append a message if there is room for it, and say so."""
        if self._late:
            return False
        if not self._messages and self._pass_on(message):
            return True
        if not self._has_room(message):
            return False
        self._append(message)
        self._changed.set()
        return True

    def check_late(self, message: Message) -> None:
        """Raise unless a message may wait.

        Raises:
            LimitError: The messages that wait would be too large together.
        """
        size = _size(message)
        if self._late_bytes + size > self.max_bytes:
            raise LimitError(
                f"{self._late_bytes + size} bytes of messages wait for the client, but "
                f"{self.max_bytes} may: await each send, and send less at once"
            )
        if len(self._late) >= MAX_LATE:
            raise LimitError(
                f"{len(self._late) + 1} messages wait for room beside those that wait for the "
                f"client, but {MAX_LATE} may: await each send"
            )
        self._share.check("unread_bytes", size)

    def put_late(
        self, message: Message, on_room: Callable[[], None]
    ) -> Callable[[], None]:
        """Append a message once there is room, and call ``on_room`` then.

        Returns:
            Takes the message back; once there was room for it, that does nothing.
        """
        size = _size(message)
        number = self._next_late
        self._next_late += 1
        self._late[number] = (message, on_room)
        self._late_bytes += size
        self._share.take("unread_bytes", size)

        def take_back() -> None:
            if self._late.pop(number, None) is not None:
                self._late_bytes -= size
                self._share.give("unread_bytes", size)

        return take_back

    def close(self) -> None:
        """Let the client's :meth:`take` end once it has taken everything."""
        self._messages.extend(message for message, _ in self._late.values())
        self._late.clear()
        # The inferlet has ended; what its client has not taken is the client's.
        self._share.give("unread_bytes", self._num_bytes + self._late_bytes)
        self._share, self._num_bytes, self._late_bytes = Share(), 0, 0
        self._is_closed = True
        self._changed.set()

    async def take(self) -> list[Message]:
        """Wait for messages and return all there are; empty once the outbox is closed."""
        while not self._messages and not self._is_closed:
            self._changed = trio.Event()
            await self._changed.wait()
        await trio.lowlevel.checkpoint()
        taken = list(self._messages)
        self._messages.clear()
        self._share.give("unread_bytes", self._num_bytes)
        self._num_bytes = 0
        while self._late:
            number = next(iter(self._late))
            message, on_room = self._late[number]
            if not self._has_room(message):
                break
            del self._late[number]
            self._late_bytes -= _size(message)
            self._share.give("unread_bytes", _size(message))
            self._append(message)
            on_room()
        return taken

    def _has_room(self, message: Message) -> bool:
        """Say whether a message fits; an empty outbox takes one of any size."""
        if not self._messages:
            return self.max_unread > 0
        return (
            len(self._messages) < self.max_unread
            and self._num_bytes + _size(message) <= self.max_bytes
            and _size(message) <= self._share.room("unread_bytes")
        )

    def _append(self, message: Message) -> None:
        self._messages.append(message)
        self._num_bytes += _size(message)
        self._share.take("unread_bytes", _size(message))


def _size(message: Message) -> int:
    """Return the bytes that a message takes at least."""
    return len(message)
