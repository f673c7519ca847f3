"""Talk to the client that launched the program, and to the program's own log."""

from __future__ import annotations

from typing import Literal, cast

from inferlet_py._host import get_host
from inferlet_py._tasks import wait_ticket

__all__ = ["get_instance_id", "get_version", "log", "send"]


async def send(message: str | bytes) -> None:
    """Send a message to the client; waits while the client has left too many unread."""
    host = get_host()
    given = cast("object", message)  # authors without a type checker pass anything
    if isinstance(given, str):
        ticket = host.send(given)
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


def log(
    text: str, *, level: Literal["debug", "info", "warning", "error"] = "info"
) -> None:
    """Append a line to the instance's log."""
    get_host().log(level, text)


def get_instance_id() -> str:
    """Return the name of this run of the program."""
    return get_host().get_instance_id()


def get_version() -> str:
    """Return the version of the server."""
    return get_host().get_version()
