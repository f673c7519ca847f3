"""Cuts what a client sends into requests, and passes on nothing that is ambiguous.

It stands before h11, which accepts line ends, folded headers and trailers that a proxy in front
may read differently; and it holds back the next request until the last one is answered.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import TYPE_CHECKING

from pie_trio.application.web.problems import RefusedError
from pie_trio.application.web.shell.heads import (
    RequestHead,
    check_partial_head,
    read_head,
)

if TYPE_CHECKING:
    from pie_trio.application.web.shell.config import ShellConfig

__all__ = ["Framing", "Phase"]

MAX_CHUNK_LINE = 256

_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t\x20-\x7e]*)?")


class Phase(Enum):
    """Where in a request the next byte belongs."""

    HEAD = auto()
    BODY = auto()  # of known length
    CHUNKS = auto()
    COMPLETE = auto()  # all of it has come; the next waits until this one is answered
    SWITCHING = (
        auto()
    )  # what follows a WebSocket's handshake waits until it is accepted
    RAW = auto()  # frames of a WebSocket


class Framing:
    """The bytes of one connection, in order. Not more than what was fed is kept.

    Attributes:
        phase: Where the next byte belongs.
        head: Of the request that is under way, or was the last one.
    """

    def __init__(self, config: ShellConfig) -> None:
        self._config = config
        self._buffer = bytearray()
        self._searched = 0  # of the buffer, for the end of the head
        self.phase = Phase.HEAD
        self.head: RequestHead | None = None
        self._remaining = 0  # bytes of the body, or of its chunk
        self._body_bytes = 0
        self._expects = _SIZE

    @property
    def num_held(self) -> int:
        """Bytes that were fed and not taken."""
        return len(self._buffer)

    @property
    def is_between_requests(self) -> bool:
        """Whether not a byte of the next request has come."""
        return self.phase is Phase.HEAD and not self._buffer

    @property
    def is_held(self) -> bool:
        """Whether bytes wait until a request is answered."""
        waits = self.phase in (Phase.COMPLETE, Phase.SWITCHING)
        return waits and bool(self._buffer)

    def feed(self, data: bytes | bytearray) -> None:
        """Append what was received."""
        self._buffer += data

    def take(self) -> bytes:
        """Return bytes of one request that are in order; none if more must come first.

        Raises:
            RefusedError: It is malformed or too large. Nothing after it can be read.
        """
        match self.phase:
            case Phase.HEAD:
                return self._take_head()
            case Phase.BODY:
                return self._take_body()
            case Phase.CHUNKS:
                return self._take_chunks()
            case Phase.RAW:
                return self._cut(len(self._buffer))
            case Phase.COMPLETE | Phase.SWITCHING:
                return b""

    def begin_next(self) -> None:
        """Let the next request through: this one is answered."""
        assert self.phase is Phase.COMPLETE, "a request is answered after it has come"
        self.phase = Phase.HEAD

    def switch_protocol(self) -> None:
        """Let everything through from now on: the WebSocket was accepted."""
        assert self.phase is Phase.SWITCHING, "only a handshake is accepted"
        self.phase = Phase.RAW

    def _cut(self, num_bytes: int) -> bytes:
        piece = bytes(self._buffer[:num_bytes])
        del self._buffer[:num_bytes]
        return piece

    def _take_head(self) -> bytes:
        while self._buffer.startswith(b"\r\n"):  # old clients end a body with one more
            del self._buffer[:2]
        limit = self._config.max_head_bytes
        end = self._buffer.find(b"\r\n\r\n", self._searched)
        if end < 0:
            if bytes(self._buffer) != b"\r":
                check_partial_head(self._buffer)
            if len(self._buffer) > limit:
                raise _large_head(limit)
            self._searched = max(0, len(self._buffer) - 3)
            return b""
        self._searched = 0
        if end + 4 > limit:
            raise _large_head(limit)
        data = self._cut(end + 4)
        check_partial_head(data)
        self.head = head = read_head(data, self._config)
        self._body_bytes, self._expects = 0, _SIZE
        if head.is_websocket:
            self.phase = Phase.SWITCHING
        elif head.content_length is None:
            self.phase = Phase.CHUNKS
        elif head.content_length:
            self.phase, self._remaining = Phase.BODY, head.content_length
        else:
            self.phase = Phase.COMPLETE
        return data

    def _take_body(self) -> bytes:
        piece = self._cut(self._remaining)
        self._remaining -= len(piece)
        if not self._remaining:
            self.phase = Phase.COMPLETE
        return piece

    def _take_chunks(self) -> bytes:
        position, is_done = 0, False
        while not is_done:
            if self._expects is _DATA:
                step = min(self._remaining, len(self._buffer) - position)
                if not step:
                    break
                position += step
                self._remaining -= step
                if not self._remaining:
                    self._expects = _END_OF_DATA
                continue
            end = self._buffer.find(b"\r\n", position, position + MAX_CHUNK_LINE + 2)
            if end < 0:
                self._check_partial_line(position)
                break
            is_done = self._read_line(bytes(self._buffer[position:end]))
            position = end + 2
        if is_done:
            self.phase = Phase.COMPLETE
        return self._cut(position)

    def _check_partial_line(self, position: int) -> None:
        line = self._buffer[position : position + MAX_CHUNK_LINE + 2]
        if len(line) > MAX_CHUNK_LINE:
            raise RefusedError(
                400, f"a chunk begins with more than {MAX_CHUNK_LINE} bytes"
            )
        if b"\n" in line or b"\r" in line[:-1]:
            raise RefusedError(400, "a line ends without a carriage return")
        if self._expects is _END_OF_DATA and bytes(line) not in (b"", b"\r"):
            raise RefusedError(400, "a chunk is longer than it said")

    def _read_line(self, line: bytes) -> bool:
        """Take the next line between chunks, and say whether it was the last."""
        if self._expects is _END_OF_DATA:
            if line:
                raise RefusedError(400, "a chunk is longer than it said")
            self._expects = _SIZE
            return False
        if self._expects is _END_OF_BODY:
            if line:
                raise RefusedError(400, "trailers are not supported")
            return True
        if (match := _CHUNK_LINE.fullmatch(line)) is None:
            raise RefusedError(400, "a chunk does not begin with its size")
        self._remaining = int(match[1], 16)
        self._body_bytes += self._remaining
        if self._body_bytes > self._config.max_body_bytes:
            raise RefusedError(
                413,
                "the body has more bytes than the "
                f"{self._config.max_body_bytes} that are allowed",
            )
        self._expects = _DATA if self._remaining else _END_OF_BODY
        return False


class _Expected(Enum):
    """What comes next in a body of chunks."""

    SIZE = auto()
    DATA = auto()
    END_OF_DATA = auto()
    END_OF_BODY = auto()


_SIZE, _DATA = _Expected.SIZE, _Expected.DATA
_END_OF_DATA, _END_OF_BODY = _Expected.END_OF_DATA, _Expected.END_OF_BODY


def _large_head(limit: int) -> RefusedError:
    return RefusedError(
        431, f"the request's head has more than the {limit} bytes that are allowed"
    )
