"""What happens in a simulation, and how few of it still goes wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True)
class Event:
    """Something that happens. Numbers choose among what there is, so any list of events runs."""

    kind: str
    who: int = 0
    number: int = 0

    def __str__(self) -> str:
        return f"{self.kind}({self.who}, {self.number})"


def describe_failure(run: Callable[[], object]) -> str | None:
    """Return what a simulation fails with; None if it does not."""
    try:
        run()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return describe_error(error)
    return None


def describe_error(error: BaseException) -> str:
    """Return what an error says, or the first of a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def shrink_events(
    events: Sequence[Event], fails: Callable[[Sequence[Event]], bool], *, max_runs: int
) -> list[Event]:
    """Return a part of the events with which something still goes wrong."""
    found, size = list(events), len(events) // 2
    while size and max_runs:
        start = 0
        while start < len(found) and max_runs:
            max_runs -= 1
            shorter = found[:start] + found[start + size :]
            if fails(shorter):
                found = shorter
            else:
                start += size
        size //= 2
    return found
