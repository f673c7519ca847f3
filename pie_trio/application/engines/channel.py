"""One socket to another process: a message there, an answer back.

A message is pickled; large buffers in it (pages, logits) are sent as they lie in memory. Both ends
are ours: what comes is trusted.
"""

from __future__ import annotations

import pickle
import select
import struct
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket

__all__ = ["Channel", "ClosedError"]

LARGE_BYTES = 1 << 16
"""Smaller buffers are copied: to send one apart costs more."""

READ_BYTES = 1 << 16
_HEADER = struct.Struct("<QII")  # bytes that follow, of them pickled, large buffers
_LENGTH = struct.Struct("<Q")
_MAX_PARTS = 64  # of one call; the system takes at least 1024


class ClosedError(Exception):
    """The other end is gone."""


class Channel:
    """Sends and receives messages over a stream socket, which is this object's from now on.

    Several threads may use it in turn, but never two at once.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._chunk = bytearray(READ_BYTES)
        self._unread = b""
        self._message = bytearray()
        self._layout: tuple[int, int] | None = None  # pickled bytes, large buffers
        self._num_read = 0

    def fileno(self) -> int:
        """Return the socket's number; -1 once it is closed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._socket.close()

    # ---- sending ----------------------------------------------------------------------

    def start_send(self, message: Any) -> list[memoryview]:
        """Send as much as the socket takes at once, and return the rest.

        Raises:
            ClosedError: The other end is gone.
        """
        large: list[memoryview] = []

        def is_with_the_others(buffer: pickle.PickleBuffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes < LARGE_BYTES:
                return True
            large.append(raw)
            return False

        head = pickle.dumps(message, 5, buffer_callback=is_with_the_others)
        lengths = [_LENGTH.pack(raw.nbytes) for raw in large]
        total = sum(raw.nbytes for raw in large) + len(head) + 8 * len(large)
        first = b"".join([_HEADER.pack(total, len(head), len(large)), *lengths, head])
        return self.continue_send([memoryview(first), *large])

    def continue_send(self, parts: list[memoryview]) -> list[memoryview]:
        """Send more of what :meth:`start_send` left, and return the rest.

        Raises:
            ClosedError: The other end is gone.
        """
        while parts:
            try:
                count = self._socket.sendmsg(parts[:_MAX_PARTS])
            except BlockingIOError:
                return parts
            except OSError as error:
                raise ClosedError from error
            while parts and count >= parts[0].nbytes:
                count -= parts.pop(0).nbytes
            if count:
                parts[0] = parts[0][count:]
        return parts

    def send(self, message: Any, *, deadline: float | None = None) -> None:
        """Send a message. Blocks.

        Raises:
            ClosedError: The other end is gone.
            TimeoutError: It has not taken the message by ``deadline``, of
                ``time.monotonic()``.
        """
        parts = self.start_send(message)
        while parts:
            if not self._wait(select.POLLOUT, deadline):
                raise TimeoutError
            parts = self.continue_send(parts)

    # ---- receiving --------------------------------------------------------------------

    def receive(self, *, deadline: float | None = None) -> Any:
        """Return the next message. Blocks.

        Raises:
            ClosedError: The other end is gone.
            TimeoutError: None has come by ``deadline``, of ``time.monotonic()``.
        """
        while (message := self.try_receive()) is None:
            if not self._wait(select.POLLIN, deadline):
                raise TimeoutError
        return message

    def try_receive(self) -> Any:
        """Return the next message if all of it is there, else None: no message is None.

        Raises:
            ClosedError: The other end is gone.
        """
        while self._layout is None:
            if len(self._unread) >= _HEADER.size:
                total, *layout = _HEADER.unpack_from(self._unread)
                self._layout = (layout[0], layout[1])
                self._message = bytearray(total)
                rest = self._unread[_HEADER.size : _HEADER.size + total]
                self._message[: len(rest)] = rest
                self._unread = self._unread[_HEADER.size + total :]
                self._num_read = len(rest)
                break
            if not (count := self._read(self._chunk)):
                return None
            self._unread += self._chunk[:count]
        whole = memoryview(self._message)
        while self._num_read < len(whole):
            if not (count := self._read(whole[self._num_read :])):
                return None
            self._num_read += count
        num_pickled, num_large = self._layout
        self._layout, self._message = None, bytearray()
        return _load(whole, num_pickled, num_large)

    def _read(self, into: bytearray | memoryview) -> int:
        """Return how many bytes were read; 0 if there are none yet."""
        try:
            count = self._socket.recv_into(into)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ClosedError from error
        if not count:
            raise ClosedError
        return count

    def wait_readable(self, seconds: float) -> bool:
        """Wait for something to read, and say whether there is."""
        return self._wait(select.POLLIN, time.monotonic() + seconds)

    def _wait(self, what: int, deadline: float | None) -> bool:
        poll = select.poll()
        poll.register(self._socket, what)
        if deadline is None:
            return bool(poll.poll())
        return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1e3))


def _load(whole: memoryview, num_pickled: int, num_large: int) -> Any:
    start = 8 * num_large
    lengths = [_LENGTH.unpack_from(whole, 8 * i)[0] for i in range(num_large)]
    head = whole[start : start + num_pickled]
    start += num_pickled
    large: list[memoryview] = []
    for length in lengths:
        large.append(whole[start : start + length])
        start += length
    return pickle.loads(head, buffers=large)
