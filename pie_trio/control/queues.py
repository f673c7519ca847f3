"""Command queues of an inferlet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pie_trio.control.commands import Priority

if TYPE_CHECKING:
    from collections.abc import Callable

    from pie_trio.control.commands import Command
    from pie_trio.control.served_model import ServedModel

__all__ = ["CommandQueue"]


class CommandQueue:
    """The unfinished commands that an inferlet enqueued on one queue.

    In which order they take effect is decided by what they read and write
    (:mod:`pie_trio.control.commands`); the queue knows when all of them are done.

    Attributes:
        number: The inferlet's handle of it.
        priority: Of the commands that are enqueued from now on.
    """

    def __init__(self, model: ServedModel, number: int = 0) -> None:
        self.model, self.number = model, number
        self.priority = Priority.NORMAL
        self._next = 0
        # Each with its number in the queue, oldest first.
        self._unfinished: dict[Command, int] = {}
        self._barriers: dict[int, Callable[[], None]] = {}

    @property
    def num_unfinished(self) -> int:
        """Commands that have not finished."""
        return len(self._unfinished)

    def add(self, command: Command) -> None:
        """Count a command among the queue's until :meth:`finish`."""
        self._unfinished[command] = self._take_number()

    def finish(self, command: Command) -> None:
        """Forget a command; barriers that waited for it alone are called."""
        del self._unfinished[command]
        oldest = next(iter(self._unfinished.values()), self._next)
        while self._barriers and (number := next(iter(self._barriers))) < oldest:
            self._barriers.pop(number)()

    def synchronize(self, on_passed: Callable[[], None]) -> Callable[[], None]:
        """Call ``on_passed`` once every command that is in the queue now has finished.

        Returns:
            Takes the barrier away; once it was passed, that does nothing.
        """
        number = self._take_number()
        if self._unfinished:
            self._barriers[number] = on_passed
        else:
            on_passed()

        def take_away() -> None:
            self._barriers.pop(number, None)

        return take_away

    def withdraw_all(self) -> None:
        """Withdraw the commands that have not started."""
        for command in self._unfinished:
            command.withdraw()

    def _take_number(self) -> int:
        self._next += 1
        return self._next - 1
