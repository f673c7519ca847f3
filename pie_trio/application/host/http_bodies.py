"""Bodies of answers on their way to an instance: a few parts wait here, the rest at the server."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio

from pie_trio.control.receives import ReceiveQueue
from pie_trio.errors import BadArgumentError, InferletError, LimitError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pie_trio.control.receives import Receive

__all__ = ["BodyTable", "HttpBody"]

MAX_BODIES = 32
MAX_WAITING_BYTES = 256 << 10

Part = bytes | InferletError | None
"""Some bytes; what ended the body too soon; None at its end."""


class HttpBody:
    """One body. Its request puts parts in, and the instance takes them out in order.

    Attributes:
        cancel: Ends its request.
    """

    def __init__(self) -> None:
        self.cancel: Callable[[], None] = lambda: None
        self._parts: deque[bytes] = deque()
        self._num_bytes = 0
        self._has_ended = False
        self._error: InferletError | None = None
        self._changed = trio.Event()
        self._receives: ReceiveQueue[Part] = ReceiveQueue(
            has_next=lambda: bool(self._parts) or self._has_ended,
            take_next=self._take_next,
        )

    async def put(self, data: bytes) -> None:
        """Wait for room and append a part."""
        while self._num_bytes >= MAX_WAITING_BYTES and not self._has_ended:
            self._changed = trio.Event()
            await self._changed.wait()
        if not self._has_ended:
            self._parts.append(data)
            self._num_bytes += len(data)
            self._receives.tell_next()

    def end(self, error: InferletError | None = None) -> None:
        """Note that no more comes, and perhaps why; what is there can still be taken."""
        if not self._has_ended:
            self._has_ended, self._error = True, error
            self._changed.set()
            self._receives.tell_next()

    def receive(self, on_part: Callable[[], None]) -> Receive[Part]:
        """Wait for the next part, and call ``on_part`` once it can be taken."""
        return self._receives.add(on_part)

    def _take_next(self) -> Part:
        if not self._parts:
            return self._error
        data = self._parts.popleft()
        self._num_bytes -= len(data)
        self._changed.set()
        return data


class BodyTable:
    """The bodies of one instance, by its own numbers."""

    def __init__(self) -> None:
        self._bodies: dict[int, HttpBody] = {}

    def add(self, number: int) -> HttpBody:
        """Return a new body.

        Raises:
            BadArgumentError: The number is in use.
            LimitError: There are too many.
        """
        if number in self._bodies:
            raise BadArgumentError(
                f"the body {number} is there already: close it first"
            )
        if len(self._bodies) >= MAX_BODIES:
            raise LimitError(
                f"{len(self._bodies)} bodies are open, which is as many as an inferlet may "
                "have: close one"
            )
        body = self._bodies[number] = HttpBody()
        return body

    def get(self, number: int) -> HttpBody:
        """Return a body.

        Raises:
            NotFoundError: There is none of that number.
        """
        if number not in self._bodies:
            raise NotFoundError(f"there is no body {number}: open it first")
        return self._bodies[number]

    def close(self, number: int) -> None:
        """Forget a body, and end its request.

        Raises:
            NotFoundError: There is none of that number.
        """
        body = self.get(number)
        del self._bodies[number]
        body.cancel()
        body.end()
