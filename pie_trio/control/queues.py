"""Command queues of an inferlet."""

from __future__ import annotations

from collections.abc import Callable

from pie_trio.control.commands import Command
from pie_trio.control.served_model import ServedModel

__all__ = ["CommandQueue"]


class CommandQueue:
    """The unfinished commands that an inferlet enqueued on one queue.

    In which order they take effect is decided by what they read and write
    (:mod:`pie_trio.control.commands`); the queue knows when all of them are done.
    """

    def __init__(self, model: ServedModel) -> None:
        self.model = model
        self._unfinished: dict[int, Command] = {}
        self._barriers: list[tuple[set[int], Callable[[], None]]] = []

    def add(self, command: Command) -> None:
        """Count a command among the queue's until :meth:`finish`."""
        self._unfinished[id(command)] = command

    def finish(self, command: Command) -> None:
        """Forget a command; barriers that waited for it alone are called."""
        del self._unfinished[id(command)]
        passed = []
        for barrier in self._barriers:
            barrier[0].discard(id(command))
            if not barrier[0]:
                passed.append(barrier)
        for barrier in passed:
            self._barriers.remove(barrier)
            barrier[1]()

    def synchronize(self, on_passed: Callable[[], None]) -> None:
        """Call ``on_passed`` once every command that is in the queue now has finished."""
        if self._unfinished:
            self._barriers.append((set(self._unfinished), on_passed))
        else:
            on_passed()

    def withdraw_all(self) -> None:
        """Withdraw the commands that have not started."""
        for command in self._unfinished.values():
            self.model.batcher.withdraw(command)
