"""``pie launch``: a program on a server, with the terminal as its client."""

from __future__ import annotations

import base64
import json
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from pie_trio.application.remote.connection import RemoteError, quoted
from pie_trio.application.run.console import MessagePrinter, write_all
from pie_trio.errors import GuestFailedError, PieError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pie_trio.application.remote.connection import RemoteEvent, Server

__all__ = ["print_events"]


def print_events(
    server: Server, events: Iterator[RemoteEvent], *, is_json: bool
) -> None:
    """Print what an instance tells as it comes: as ``pie run`` does, or a JSON line each.

    Lines of stdin are sent to it, from when it first receives.

    Raises:
        GuestFailedError: It failed.
        RemoteError: It was ended, or the connection broke.
    """
    printer, name = MessagePrinter(), ""
    failure: PieError | None = None
    has_ended = False
    for event in events:
        if is_json:
            line = {"event": event.kind, "number": event.number, **event.data}
            printer.print_messages([json.dumps(line, ensure_ascii=False) + "\n"])
        match event.kind:
            case "started":
                name = str(event.data["id"])
            case "receiving":
                feed = threading.Thread(
                    target=_feed_lines, args=(server, name), daemon=True
                )
                feed.start()
            case "error":
                failure = _failure(event)
            case "end":
                has_ended = True
            case _:
                if not is_json:
                    _print_event(printer, event)
    if failure is not None or not has_ended:
        if not is_json:
            printer.end_line()
        raise failure or RemoteError(
            0,
            f"the stream of {name} was cut off: the server stopped, or the network did",
        )


def _print_line(event: RemoteEvent) -> None:
    """Print a line of a log on stderr."""
    source = event.data.get("source", "")
    prefix = "" if source in ("stdout", "stderr") else f"[{source}] "
    with suppress(OSError):
        write_all(
            sys.stderr, f"{prefix}{event.data['text']}\n".encode(errors="replace")
        )


def _print_event(printer: MessagePrinter, event: RemoteEvent) -> None:
    match event.kind:
        case "message" if "binary" in event.data:
            printer.print_messages([base64.b64decode(event.data["binary"])])
        case "message":
            printer.print_messages([event.data["text"]])
        case "log":
            _print_line(event)
        case "result":
            printer.print_result(json.dumps(event.data["value"]))
        case _:
            pass


def _failure(event: RemoteEvent) -> PieError:
    message = str(event.data.get("message", ""))
    if "traceback" in event.data:
        return GuestFailedError(
            kind=str(event.data.get("kind", "")),
            message=message,
            traceback=str(event.data["traceback"]),
        )
    return RemoteError(0, message)


def _feed_lines(server: Server, name: str) -> None:
    """Send the lines of stdin, and that there are no more; in a thread that nobody waits for."""
    path = f"/v1/instances/{quoted(name)}/messages"
    with suppress(PieError, OSError, ValueError):  # it has ended; or there is no stdin
        for line in sys.stdin:
            server.ask("POST", path, json_body={"text": line.rstrip("\r\n")})
        server.ask("POST", path, json_body={"end": True})
