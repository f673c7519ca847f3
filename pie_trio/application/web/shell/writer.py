"""What is sent on one connection: in order, in few writes, and never more than is taken."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["Writer"]

STALL_BYTES = 16 << 10
"""What a client must take in time, again and again."""

MAX_CORKED_BYTES = 64 << 10
WRITES_PER_CHECKPOINT = 8


class Writer:
    """Sends bytes. A cancelled sender leaves no part of a message behind: all of it is sent.

    Senders append, then wait until everything was taken, so at most one message of each
    sender is kept. Where the socket takes it at once, no task and no event is involved;
    otherwise a task sends the rest, for as long as there is any.

    Args:
        stream: Where to; nobody else sends on it.
        stall_seconds: For the peer to take the next 16 KiB.
        on_broken: Called once, when nothing can be sent any more.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        stall_seconds: float,
        on_broken: Callable[[], None],
    ) -> None:
        self._stream = stream
        self._socket = stream.socket if isinstance(stream, trio.SocketStream) else None
        self._stall_seconds = stall_seconds
        self._on_broken = on_broken
        self._buffer = bytearray()
        self._nursery: trio.Nursery | None = None
        self._emptied: trio.Event | None = None  # while a task sends
        self._num_corks = 0
        self._num_writes = 0
        self.is_broken = False

    def start(self, nursery: trio.Nursery) -> None:
        """Say where tasks may run; before the first write."""
        self._nursery = nursery

    def write(self, data: bytes) -> None:
        """Append bytes; :meth:`flush` sends them."""
        if not self.is_broken:
            self._buffer += data

    @contextmanager
    def corked(self) -> Generator[None]:
        """Keep what is written in the block together: flushes send only what is large."""
        self._num_corks += 1
        try:
            yield
        finally:
            self._num_corks -= 1

    async def flush(self) -> None:
        """Wait until the system has taken everything; when corked, not for little."""
        if self._num_corks and len(self._buffer) < MAX_CORKED_BYTES:
            return
        self.push()
        if self._emptied is not None:
            await self._emptied.wait()
            return
        self._num_writes += 1
        # A sender that finds its socket always ready must let others run, and be cancelled.
        if self.is_broken or self._num_writes % WRITES_PER_CHECKPOINT == 0:
            await trio.lowlevel.checkpoint()

    def push(self) -> None:
        """Send what can be sent now, and leave the rest to a task."""
        if not self._buffer or self._emptied is not None:
            return
        if self._socket is not None:
            try:
                num_bytes = os.write(self._socket.fileno(), self._buffer)
            except BlockingIOError:
                num_bytes = 0
            except OSError:
                self._break()
                return
            del self._buffer[:num_bytes]
        if self._buffer:
            assert self._nursery is not None, "writes come after the start"
            self._emptied = trio.Event()
            self._nursery.start_soon(self._send_rest, self._emptied)

    async def _send_rest(self, emptied: trio.Event) -> None:
        try:
            while self._buffer:
                piece = bytes(self._buffer[:STALL_BYTES])
                del self._buffer[:STALL_BYTES]
                with trio.move_on_after(self._stall_seconds) as scope:
                    await self._stream.send_all(piece)
                if scope.cancelled_caught:
                    self._break()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._break()
        finally:
            self._emptied = None
            emptied.set()

    def _break(self) -> None:
        self._buffer.clear()
        if not self.is_broken:
            self.is_broken = True
            self._on_broken()
