"""Numbers for handles: the guest chooses them, so that allocating never waits."""

from __future__ import annotations

__all__ = ["Numbers", "start_anew"]


class Numbers:
    """Counts from 1. Use with ``next``."""

    def __init__(self) -> None:
        self._last = 0
        _every.append(self)

    def __next__(self) -> int:
        self._last += 1
        return self._last

    def start_anew(self) -> None:
        """Begin with 1 again."""
        self._last = 0


_every: list[Numbers] = []


def start_anew() -> None:
    """Let all that are made at import begin with 1 again, for another host.

    Runs that share an interpreter, and those in Wasm, whose image has rehearsed, thus make the
    same calls.
    """
    for numbers in _every:
        numbers.start_anew()
