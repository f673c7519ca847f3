"""The access log: a line for each request, and each that was refused."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass

__all__ = ["Access", "log_access"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Access:
    """One request. It goes with the log's record as the attribute ``access``, a dict.

    Attributes:
        peer: Its address; ``unix`` for a unix socket.
        method: ``-`` if it could not be read.
        path: As it came, percent-encoded, so a line stays one; without the query, which may
            hold keys.
        status: Of the answer; 101 for a WebSocket, None if none was begun.
        sent_bytes: Of the body, or of a WebSocket's frames.
        milliseconds: From the head to the end.
        outcome: ``done``, ``refused``, ``failed``, or ``cancelled``: the client left, or the
            server stopped.
    """

    peer: str
    method: str
    path: str
    status: int | None
    sent_bytes: int
    milliseconds: float
    outcome: str


def log_access(access: Access) -> None:
    """Write the line."""
    if logger.isEnabledFor(logging.INFO):
        logger.info(
            '%s "%s %s" %s %d B %.1f ms %s',
            access.peer,
            access.method,
            access.path,
            access.status if access.status is not None else "-",
            access.sent_bytes,
            access.milliseconds,
            access.outcome,
            extra={"access": asdict(access)},
        )
