"""The log of one instance: what it logs and prints, line by line, bounded."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["InstanceLog", "LogLine"]

MAX_LINE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line.

    Attributes:
        source: ``debug`` to ``error`` for what was logged, ``stdout`` or ``stderr`` for what
            was printed.
        text: Without the line break.
    """

    source: str
    text: str


class InstanceLog:
    """Keeps the latest lines.

    Args:
        max_bytes: What it keeps; older lines go first.
        on_line: Is told each line as it comes.
    """

    def __init__(
        self, *, max_bytes: int, on_line: Callable[[LogLine], None] | None = None
    ) -> None:
        self.max_bytes = max_bytes
        self.lines: deque[LogLine] = deque()
        self.num_dropped = 0
        self._num_bytes = 0
        self._on_line = on_line
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
            self._append(LogLine(_name(stream), line.decode(errors="replace")))

    def close(self) -> None:
        """Append the lines that have no end."""
        for stream, rest in self._partial.items():
            if rest:
                self._append(LogLine(_name(stream), rest.decode(errors="replace")))
        self._partial.clear()

    def _append(self, line: LogLine) -> None:
        self.lines.append(line)
        self._num_bytes += len(line.text)
        while self._num_bytes > self.max_bytes and len(self.lines) > 1:
            self._num_bytes -= len(self.lines.popleft().text)
            self.num_dropped += 1
        if self._on_line is not None:
            self._on_line(line)


def _name(stream: int) -> str:
    return "stdout" if stream == 1 else "stderr"
