"""The terminal as a client: messages and the result on stdout, logs and progress on stderr."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from pie_trio.application.host.instance_log import LogLine
    from pie_trio.control.outbox import Message

__all__ = ["MessagePrinter", "long_step", "print_log"]


class MessagePrinter:
    """Prints what a program sends as it comes, then its result."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out = out
        self._is_line_open = False

    def print_messages(self, messages: Sequence[Message]) -> None:
        """Write messages as they are: a program streams text in pieces.

        Raises:
            BrokenPipeError: Nobody reads any more.
        """
        for message in messages:
            if isinstance(message, bytes):
                self._out.flush()
                self._out.buffer.write(message)
            else:
                self._out.write(message)
            if message:
                self._is_line_open = message[-1:] not in ("\n", b"\n")
        self._out.flush()

    def end_line(self) -> None:
        """Begin a new line unless the cursor is at the start of one."""
        if self._is_line_open:
            self._out.write("\n")
            self._out.flush()
            self._is_line_open = False

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
        self._out.write(text + "\n")
        self._out.flush()


def print_log(line: LogLine) -> None:
    """Write a line of an instance's log to stderr."""
    prefix = "" if line.source in ("stdout", "stderr") else f"[{line.source}] "
    print(f"{prefix}{line.text}", file=sys.stderr, flush=True)  # noqa: T201 - it is the terminal's


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
