"""The report of a program in which no task can ever run again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType

_PACKAGE_DIR = __file__.rpartition("/")[0] + "/"


class DeadlockError(RuntimeError):
    """Every task waits for another one, so the program can never go on."""

    def __init__(self, waits: Iterable[tuple[str, str, str | None]]) -> None:
        """Take the name, the reason and the ``file:line`` of each blocked task."""
        lines = [
            f"\n  {name} waits for {waits_for}" + (f" ({where})" if where else "")
            for name, waits_for, where in waits
        ]
        super().__init__(
            "all tasks are blocked, and no result, message or deadline is due that "
            "could wake one of them:" + "".join(lines)
        )


def waiting_line(coro: object) -> str | None:
    """Return ``file:line`` of the innermost line outside this package that awaits."""
    where: str | None = None
    awaiting: Any = coro
    while awaiting is not None:
        frame: FrameType | None = getattr(awaiting, "cr_frame", None)
        if frame and not frame.f_code.co_filename.startswith(_PACKAGE_DIR):
            where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        awaiting = getattr(awaiting, "cr_await", None)
    return where
