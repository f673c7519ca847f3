"""What can go wrong on the server's side of a request, besides what inferlets do."""

from __future__ import annotations

from pie_trio.errors import PieError

__all__ = [
    "DrainingError",
    "KeyStoreError",
    "ProgramStoreError",
    "StorageFullError",
    "TooLargeError",
    "UnauthorizedError",
]


class UnauthorizedError(PieError):
    """A request has no key, or none that the server knows."""


class KeyStoreError(PieError):
    """The keys cannot be read or written: nobody can be let in."""


class ProgramStoreError(PieError):
    """The programs cannot be read or written: the disk failed, or its mode forbids it."""


class StorageFullError(ProgramStoreError):
    """There is no room for a program; everything is as it was before."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"there is no room for {what} on the server's disk: delete programs there, or "
            "free space; what was stored before is as it was"
        )


class TooLargeError(PieError):
    """What was sent, or would be answered, is larger than allowed."""


class DrainingError(PieError):
    """The server stops, and launches nothing any more."""

    def __init__(self) -> None:
        super().__init__("the server stops: it launches nothing any more")
