"""What a host function returns that cannot answer at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Waiting"]


class Waiting:
    """``await work()`` for the value; whoever gets it suspends its guest meanwhile."""

    __slots__ = ("work",)

    def __init__(self, work: Callable[[], Awaitable[Any]]) -> None:
        self.work = work
