"""Talk to the client that launched the program, and to the program's own log."""

from __future__ import annotations

from typing import Literal, cast, get_args

from inferlet_py._host import get_host
from inferlet_py._tasks import wait_ticket

__all__ = ["get_instance_id", "get_version", "log", "send"]

Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[str, ...] = get_args(Level)


async def send(message: str | bytes) -> None:
    """Send a message to the client; waits while the client has left too many unread."""
    host = get_host()
    given = cast("object", message)  # authors without a type checker pass anything
    if isinstance(given, str):
        # A lone surrogate has no UTF-8; the client must still get the rest.
        ticket = host.send(given.encode(errors="replace").decode())
    elif isinstance(given, bytes):
        ticket = host.send_bytes(given)
    else:
        raise TypeError(
            f"send() takes text or bytes, got {type(given).__name__}: "
            "convert it first, for example with json.dumps"
        )
    if ticket is not None:
        await wait_ticket(ticket)
        host.finish(ticket)


def log(text: str, *, level: Level = "info") -> None:
    """Append a line to the instance's log.

    Raises:
        ValueError: There is no such level.
    """
    if level not in LEVELS:
        raise ValueError(f"level is one of {', '.join(LEVELS)}, got {level!r}")
    get_host().log(level, text)


def get_instance_id() -> str:
    """Return the name of this run of the program."""
    return get_host().get_instance_id()


def get_version() -> str:
    """Return the version of the server."""
    return get_host().get_version()
