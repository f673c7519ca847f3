"""``pie launch``: a program on a server, with the terminal as its client."""

from __future__ import annotations

import json
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from pie_trio.application.run.console import MessagePrinter, write_all
from pie_trio.client import Log, Message, Receiving, Result
from pie_trio.errors import PieError

if TYPE_CHECKING:
    from pie_trio.client import BlockingInstance, BlockingRun, Event

__all__ = ["print_events"]


def print_events(run: BlockingRun, *, is_json: bool) -> None:
    """Print what an instance tells as it comes: as ``pie run`` does, or a JSON line each.

    Lines of stdin are sent to it, from when it first receives.

    Raises:
        InstanceFailedError: It failed, or was ended.
        BrokenConnectionError: The connection has ended before it did.
    """
    printer = MessagePrinter()
    try:
        for event in run:
            if is_json:
                line = {"event": event.kind, "number": event.number, **event.data}
                printer.print_messages([json.dumps(line, ensure_ascii=False) + "\n"])
            else:
                _print_event(printer, event)
            if isinstance(event, Receiving):
                feed = threading.Thread(
                    target=_feed_lines, args=(run.instance,), daemon=True
                )
                feed.start()
    except PieError:
        if not is_json:
            printer.end_line()
        raise


def _print_event(printer: MessagePrinter, event: Event) -> None:
    match event:
        case Message():
            printer.print_messages([event.content])
        case Log():
            _print_line(event)
        case Result():
            printer.print_result(json.dumps(event.value))
        case _:
            pass


def _print_line(event: Log) -> None:
    """Print a line of a log on stderr."""
    prefix = "" if event.source in ("stdout", "stderr") else f"[{event.source}] "
    with suppress(OSError):
        write_all(sys.stderr, f"{prefix}{event.text}\n".encode(errors="replace"))


def _feed_lines(instance: BlockingInstance) -> None:
    """Send the lines of stdin, and that there are no more; in a thread that nobody waits for."""
    # It has ended, or the command; or there is no stdin.
    with suppress(PieError, OSError, ValueError, RuntimeError):
        for line in sys.stdin:
            instance.send(line.rstrip("\r\n"))
        instance.end_input()
