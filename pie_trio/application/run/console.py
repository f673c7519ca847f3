"""The terminal as a client: messages and the result on stdout, logs and progress on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO, TypeVar, TypeVarTuple, Unpack

import trio
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from pie_trio.application.host.instance_log import LogLine
    from pie_trio.control.outbox import Message

__all__ = [
    "LogPrinter",
    "MessagePrinter",
    "long_step",
    "run_abandonable",
    "write_all",
]


MAX_QUEUED_LINES = 10_000

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def run_abandonable(function: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
    """Write to the terminal in a thread, which is left behind there upon cancellation.

    It may be stuck in a pipe that nobody reads. What it calls must hold no lock of Python's,
    which the interpreter would want at its end.
    """
    return await trio.to_thread.run_sync(
        function, *args, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1)
    )


def write_all(stream: TextIO, data: bytes) -> None:
    """Write past the buffers of a stream, whose locks a stuck thread would keep."""
    try:
        number = stream.fileno()
    except (OSError, ValueError):  # no file: a test's
        stream.write(data.decode(errors="replace"))
        return
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(number, rest) :]


class MessagePrinter:
    """Prints what a program sends as it comes, then its result.

    All methods raise:
        BrokenPipeError: Nobody reads any more.
        ConfigError: The output cannot be written: the disk is full.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = sys.stdout if out is None else out
        self._is_line_open = False

    def print_messages(self, messages: Sequence[Message]) -> None:
        """Write messages as they are: a program streams text in pieces."""
        parts = [m if isinstance(m, bytes) else _encode(m) for m in messages]
        self._write(b"".join(parts))

    def end_line(self) -> None:
        """Begin a new line unless the cursor is at the start of one."""
        if self._is_line_open:
            self._write(b"\n")

    def print_result(self, encoded: str) -> None:
        """Write a result: nothing for None, a text as it is, everything else as JSON."""
        result = json.loads(encoded)
        self.end_line()
        if result is None:
            return
        text = (
            result
            if isinstance(result, str)
            else json.dumps(result, ensure_ascii=False)
        )
        self._write(_encode(text + "\n"))

    def _write(self, data: bytes) -> None:
        try:
            write_all(self._out, data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise ConfigError(f"cannot write to stdout: {error.strerror}") from error
        if data:
            self._is_line_open = not data.endswith(b"\n")


class LogPrinter:
    """Prints the lines of a log on stderr. What nobody reads in time is dropped, and counted."""

    def __init__(self, *, max_lines: int = MAX_QUEUED_LINES) -> None:
        self._max_lines = max_lines
        self._lines: deque[str] = deque()
        self._num_dropped = 0
        self._is_closed = False
        self._changed = trio.Event()

    def add(self, line: LogLine) -> None:
        """Queue a line."""
        if len(self._lines) >= self._max_lines:
            self._num_dropped += 1
            return
        prefix = "" if line.source in ("stdout", "stderr") else f"[{line.source}] "
        self._lines.append(f"{prefix}{line.text}\n")
        self._changed.set()

    def close(self) -> None:
        """Say that there will be no more lines."""
        self._is_closed = True
        self._changed.set()

    def take(self) -> bytes:
        """Return what is queued, and after it how much was dropped."""
        if self._num_dropped:
            self._lines.append(f"({self._num_dropped} lines dropped)\n")
            self._num_dropped = 0
        text = "".join(self._lines)
        self._lines.clear()
        return _encode(text)

    async def print_lines(self) -> None:
        """Print lines as they come, until the last one after :meth:`close`."""
        while True:
            while data := self.take():
                await run_abandonable(_print_log, data)
            if self._is_closed:
                return
            self._changed = trio.Event()
            await self._changed.wait()


def _print_log(data: bytes) -> None:
    with suppress(OSError):  # a program goes on where nobody wants its log
        write_all(sys.stderr, data)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "replace")


@contextmanager
def long_step(label: str, *, estimate_seconds: float) -> Generator[None]:
    """Show a progress bar on stderr while the block runs; it fills as estimated.

    The steps that take long (building, compiling) cannot say how far they are.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(
            f"{label} (about {estimate_seconds:.0f} s, once) ...", highlight=False
        )
        yield
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with _EstimatedProgress(
        *columns, console=console, refresh_per_second=10
    ) as progress:
        progress.estimate_seconds = estimate_seconds
        progress.add_task(f"{label} (about {estimate_seconds:.0f} s, once)", total=1.0)
        yield
        progress.complete()


class _EstimatedProgress(Progress):
    """A progress bar that moves by the clock, and slows down towards its end."""

    estimate_seconds = 1.0

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            if not task.finished:
                elapsed = task.elapsed or 0.0
                share = elapsed / (elapsed + self.estimate_seconds / 2)
                task.completed = min(share, 0.99)
        yield from super().get_renderables()

    def complete(self) -> None:
        self.update(TaskID(0), completed=1.0)
