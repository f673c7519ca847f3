"""Lines of the standard input as messages to a program, read from when it first wants one."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from pie_trio.application.run.console import run_abandonable

if TYPE_CHECKING:
    import trio

    from pie_trio.control.inbox import Inbox

__all__ = ["feed_lines"]

CHUNK_BYTES = 1 << 16


async def feed_lines(
    inbox: Inbox,
    wanted: trio.Event,
    scope: trio.CancelScope,
    number: int | None = None,
) -> None:
    """Put lines into an inbox until there are no more, or ``scope`` is cancelled.

    A program that never receives leaves the input to others. For one that receives more slowly
    than lines come in, little is read ahead.

    Args:
        inbox: Of the program.
        wanted: Happens when the program first receives.
        scope: Ends it; the thread that reads may be left behind.
        number: The file descriptor; None for the standard input.

    Raises:
        LimitError: A line is larger than the inbox.
    """
    with scope:
        await wanted.wait()
        if number is None and sys.__stdin__ is not None:
            number = sys.__stdin__.fileno()
        if number is None or await _feed(inbox, number):
            inbox.end()


async def _feed(inbox: Inbox, number: int) -> bool:
    """Put the lines of a file into an inbox, without their ends; False if that has ended.

    They are read past the buffers of Python's stream: a thread that is stuck in one keeps its
    lock, which the interpreter wants at its end.
    """
    rest = b""
    while data := await run_abandonable(_read, number):
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > inbox.max_bytes:
            lines.append(rest)  # which is refused
        for line in lines:
            if not await inbox.put(_decode(line)):
                return False
    return not rest or await inbox.put(_decode(rest))


def _decode(line: bytes) -> str:
    return line.removesuffix(b"\r").decode("utf-8", "replace")


def _read(number: int) -> bytes:
    """Return what is there, waiting for some; nothing at the end, or where nobody can read."""
    try:
        return os.read(number, CHUNK_BYTES)
    except OSError:  # closed; or the terminal of another job
        return b""
