"""What an inferlet has sent and its client has not taken yet: bounded, and it holds no pages."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Message", "Outbox"]

Message = str | bytes


class Outbox:
    """Messages of one inferlet, in order.

    Args:
        max_unread: Beyond this, messages wait for the client outside of the outbox.
    """

    def __init__(self, *, max_unread: int) -> None:
        self.max_unread = max_unread
        self._messages: deque[Message] = deque()
        self._late: dict[int, tuple[Message, Callable[[], None]]] = {}  # in order
        self._next_late = 0
        self._is_closed = False
        self._changed = trio.Event()

    def put(self, message: Message) -> bool:
        """Append a message if there is room for it, and say so."""
        if self._late or len(self._messages) >= self.max_unread:
            return False
        self._messages.append(message)
        self._changed.set()
        return True

    def put_late(
        self, message: Message, on_room: Callable[[], None]
    ) -> Callable[[], None]:
        """Append a message once there is room, and call ``on_room`` then.

        Returns:
            Takes the message back; once there was room for it, that does nothing.
        """
        number = self._next_late
        self._next_late += 1
        self._late[number] = (message, on_room)

        def take_back() -> None:
            self._late.pop(number, None)

        return take_back

    def close(self) -> None:
        """Let the client's :meth:`take` end once it has taken everything."""
        self._messages.extend(message for message, _ in self._late.values())
        self._late.clear()
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
        while self._late and len(self._messages) < self.max_unread:
            message, on_room = self._late.pop(next(iter(self._late)))
            self._messages.append(message)
            on_room()
        return taken
