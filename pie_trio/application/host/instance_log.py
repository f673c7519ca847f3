"""The log of one instance: what it logs and prints, line by line, bounded."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["InstanceLog", "LogLine"]

MAX_LINE_BYTES = 1 << 16
MAX_LINE_CHARACTERS = MAX_LINE_BYTES // 4  # as UTF-8 at most MAX_LINE_BYTES


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line.

    Attributes:
        source: ``debug`` to ``error`` for what was logged, ``stdout`` or ``stderr`` for what
            was printed.
        text: Without the line break.
        at: When it was written, in seconds since 1970.
    """

    source: str
    text: str
    at: float = field(default_factory=time.time, compare=False)


class InstanceLog:
    """Keeps the latest lines.

    Args:
        max_bytes: What it keeps; older lines go first.
        on_line: Is told each line as it comes.

    Attributes:
        lines: The latest ones.
        num_dropped: Older ones.
        on_line: As given; children of the instance tell it their lines too.
    """

    def __init__(
        self, *, max_bytes: int, on_line: Callable[[LogLine], None] | None = None
    ) -> None:
        self.max_bytes = max_bytes
        self.lines: deque[LogLine] = deque()
        self.num_dropped = 0
        self._num_bytes = 0
        self.on_line = on_line
        self._partial: dict[int, bytes] = {}

    def write(self, source: str, text: str) -> None:
        """Append a text; each of its lines becomes one of the log's."""
        for line in text.splitlines() or [""]:
            self._append(LogLine(source, line))

    def write_output(self, stream: int, data: bytes) -> None:
        """Append what was printed; a line counts once its end is there."""
        *lines, rest = (self._partial.get(stream, b"") + data).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            lines, rest = [*lines, rest], b""
        self._partial[stream] = rest
        for line in lines:
            self._append_raw(stream, line)

    def close(self) -> None:
        """Append the lines that have no end."""
        for stream, rest in self._partial.items():
            if rest:
                self._append_raw(stream, rest)
        self._partial.clear()

    def _append_raw(self, stream: int, line: bytes) -> None:
        self._append(LogLine(_name(stream), line.decode(errors="replace")))

    def _append(self, line: LogLine) -> None:
        """Append a line; one that is too long is cut into several."""
        for start in range(0, max(len(line.text), 1), MAX_LINE_CHARACTERS):
            part = line.text[start : start + MAX_LINE_CHARACTERS]
            self._append_short(LogLine(line.source, part))

    def _append_short(self, line: LogLine) -> None:
        self.lines.append(line)
        self._num_bytes += _size(line)
        while self._num_bytes > self.max_bytes and len(self.lines) > 1:
            self._num_bytes -= _size(self.lines.popleft())
            self.num_dropped += 1
        if self.on_line is not None:
            self.on_line(line)


def _size(line: LogLine) -> int:
    """Return the bytes of a line with its end, so that empty lines count too."""
    return len(line.text.encode(errors="replace")) + 1


def _name(stream: int) -> str:
    return "stdout" if stream == 1 else "stderr"
