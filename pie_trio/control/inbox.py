"""What a client has sent to an inferlet that the inferlet has not received yet: bounded."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio

from pie_trio.control.quotas import Share
from pie_trio.control.receives import ReceiveQueue, message_bytes
from pie_trio.errors import LimitError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pie_trio.control.outbox import Message
from pie_trio.control.receives import Receive

__all__ = ["Inbox"]


class Inbox:
    """Messages to one inferlet, in order.

    Each side ends it in its own way. ``end`` is the client's: what is there is still
    received, and then every receive gets None. ``close`` is the session's: nobody receives
    any more, and puts say so.

    Args:
        max_unread: Most messages that wait to be received; a client that sends more waits.
        max_bytes: The same for their size; no message may be larger.
        share: Of the quotas that count their size too. An inbox that is empty takes one whatever
            they say, so that each goes on.
    """

    def __init__(
        self, *, max_unread: int, max_bytes: int, share: Share | None = None
    ) -> None:
        assert max_unread > 0, "an inbox without room would block every client"
        self.max_unread, self.max_bytes = max_unread, max_bytes
        self._share = share or Share()
        self._messages: deque[Message] = deque()
        self._num_bytes = 0
        self._has_ended = False
        self._receives: ReceiveQueue[Message | None] = ReceiveQueue(
            has_next=lambda: bool(self._messages) or self._has_ended,
            take_next=self._take_next,
        )
        self._order = trio.StrictFIFOLock()  # whoever puts first is received first
        self._changed = trio.Event()

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def has_ended(self) -> bool:
        """Whether no message will be added any more."""
        return self._has_ended

    async def put(self, message: Message) -> bool:
        """Wait for room and append a message. A cancelled put has appended nothing.

        Returns:
            Whether it was appended; if not, the inbox has ended.

        Raises:
            LimitError: The message is larger than the inbox.
        """
        size = message_bytes(message)
        if size > self.max_bytes:
            raise LimitError(
                f"a message of {size} bytes is too large for an inferlet, which takes "
                f"{self.max_bytes}: send it in parts"
            )
        async with self._order:
            while not self._has_ended and not self._has_room(size):
                self._changed = trio.Event()
                await self._changed.wait()
            if self._has_ended:
                return False
            self._messages.append(message)
            self._num_bytes += size
            self._share.take("unread_bytes", size)
            self._receives.tell_next()
            return True

    def receive(self, on_message: Callable[[], None]) -> Receive[Message | None]:
        """Wait for the next message, and call ``on_message`` once it can be taken.

        Taking gives None where there is no message and will be none. ``on_message`` may be
        called before this returns; it may not wait, nor take by itself.
        """
        return self._receives.add(on_message)

    def end(self) -> None:
        """Note that the client sends no more. What it has sent is still received."""
        self._has_ended = True
        self._changed.set()
        self._receives.tell_next()

    def close(self) -> None:
        """Drop all messages: the inferlet has ended. Whoever puts is told."""
        self._messages.clear()
        self._share.give("unread_bytes", self._num_bytes)
        self._num_bytes = 0
        self.end()

    def _has_room(self, size: int) -> bool:
        return not self._messages or (
            len(self._messages) < self.max_unread
            and self._num_bytes + size <= self.max_bytes
            and size <= self._share.room("unread_bytes")
        )

    def _take_next(self) -> Message | None:
        if not self._messages:
            return None
        message = self._messages.popleft()
        size = message_bytes(message)
        self._num_bytes -= size
        self._share.give("unread_bytes", size)
        self._changed.set()
        return message
