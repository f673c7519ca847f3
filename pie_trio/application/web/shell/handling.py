"""What a handler, and all that runs in its tasks, may ask of the server."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import trio

    from pie_trio.application.web.shell.writer import Writer

__all__ = ["Handling", "begin_handling", "get_handling"]


@dataclass(frozen=True, slots=True)
class Handling:
    """What belongs to the request that is being handled.

    Attributes:
        draining: Set when the server begins to stop.
        writer: Sends to the client.
    """

    draining: trio.Event
    writer: Writer


_handling = ContextVar[Handling]("_handling")


def begin_handling(handling: Handling) -> None:
    """Keep it for the current task and those that it starts."""
    _handling.set(handling)


def get_handling() -> Handling:
    """Return what belongs to the current task's request; its streams can ask, too.

    Raises:
        RuntimeError: It is part of no request, or another server runs it.
    """
    try:
        return _handling.get()
    except LookupError:
        raise RuntimeError(
            "only handlers that pie_trio.application.web.shell serves can ask for this"
        ) from None
