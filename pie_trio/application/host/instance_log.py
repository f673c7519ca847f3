"""The log of one instance: what it logs and prints, line by line, bounded."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pie_trio.control.totals import Totals

__all__ = ["InstanceLog", "LogAllowance", "LogLine"]

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


class LogAllowance:
    """What an instance and its children may log.

    Args:
        max_burst: Bytes that may come at once.
        bytes_per_second: In the long run; None for no limit.
        totals: Count ``log_bytes``.
        now: The time in seconds. Native programs log where trio's clock cannot be asked.
    """

    def __init__(
        self,
        max_burst: int,
        bytes_per_second: int | None,
        totals: Totals,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now = now
        self.max_burst, self.bytes_per_second = max_burst, bytes_per_second
        self._totals = totals
        self._left, self._updated_at = float(max_burst), -math.inf

    def take(self, num_bytes: int) -> bool:
        """Count a line, if it may be logged, and say whether it may."""
        if not self._totals.has_room("log_bytes", num_bytes):
            return False
        if self.bytes_per_second is not None:
            now = self._now()
            earned = (now - self._updated_at) * self.bytes_per_second
            self._left = min(self.max_burst, self._left + earned)
            self._updated_at = now
            if num_bytes > self._left:
                return False
            self._left -= num_bytes
        self._totals.add("log_bytes", num_bytes)
        return True


class InstanceLog:
    """Keeps the latest lines.

    Args:
        max_bytes: What it keeps; older lines go first.
        on_line: Is told each line as it comes.

    Attributes:
        lines: The latest ones.
        num_dropped: Older ones.
        on_line: As given; children of the instance tell it their lines too.
        allowance: What may be logged; what is more is left out, and a line says how much that
            was. None for no limit.
        num_left_out: Lines that were left out, in all.
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
        self.allowance: LogAllowance | None = None
        self.num_left_out = 0
        self._num_untold = 0  # of those that were left out

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
        self._tell_left_out()

    def _append_raw(self, stream: int, line: bytes) -> None:
        self._append(LogLine(_name(stream), line.decode(errors="replace")))

    def _append(self, line: LogLine) -> None:
        """Append a line; one that is too long is cut into several."""
        for start in range(0, max(len(line.text), 1), MAX_LINE_CHARACTERS):
            part = line.text[start : start + MAX_LINE_CHARACTERS]
            self._append_short(LogLine(line.source, part))

    def _append_short(self, line: LogLine) -> None:
        if self.allowance is not None and not self.allowance.take(_size(line)):
            self.num_left_out += 1
            self._num_untold += 1
            return
        self._tell_left_out()
        self._keep(line)

    def _tell_left_out(self) -> None:
        if not self._num_untold or self.allowance is None:
            return
        count, self._num_untold = self._num_untold, 0
        rate = self.allowance.bytes_per_second
        text = f"{count} lines were left out: an inferlet may log {self.max_bytes} bytes at once"
        if rate is not None:
            text += f", {rate} bytes a second,"
        self._keep(LogLine("warning", f"{text} and so many in all as its limits say"))

    def _keep(self, line: LogLine) -> None:
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
