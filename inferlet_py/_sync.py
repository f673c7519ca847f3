"""What tasks of one inferlet wait for each other with: events, limiters, semaphores, locks."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, NoReturn

from inferlet_py._checkpoints import (
    cancel_shielded_checkpoint,
    checkpoint,
    checkpoint_if_cancelled,
    leave_queue,
)
from inferlet_py._tasks import Task, current_task

if TYPE_CHECKING:
    from types import TracebackType


class WouldBlock(Exception):  # noqa: N818  # trio's name
    """A ``..._nowait`` call could not be done at once."""


class Event:
    """Something that happens once, and that tasks can wait for."""

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: dict[Task, None] = {}

    def is_set(self) -> bool:
        """Return whether it has happened."""
        return self._is_set

    def set(self) -> None:
        """Let it happen: all who wait, and will wait, go on."""
        self._is_set = True
        waiting, self._waiting = self._waiting, {}
        for task in waiting:
            task.reschedule()

    async def wait(self) -> None:
        """Wait until it has happened."""
        if self._is_set:
            await checkpoint()
            return
        task = current_task()
        self._waiting[task] = None
        leave = functools.partial(leave_queue, self._waiting, task)
        await task.park(leave, "an Event")

    def __bool__(self) -> NoReturn:
        raise NotImplementedError("use event.is_set(): an Event itself is always true")


class CapacityLimiter:
    """Lets a limited number of tasks into a block: ``async with limiter: ...``.

    Tasks come in in the order they asked.

    Args:
        total_tokens: How many tasks may be inside at once; ``math.inf`` for any number.
    """

    def __init__(self, total_tokens: float) -> None:
        if total_tokens != math.inf and not isinstance(total_tokens, int):
            raise TypeError(f"total_tokens must be an int or inf, not {total_tokens!r}")
        if total_tokens < 0:
            raise ValueError(f"total_tokens must be >= 0, not {total_tokens}")
        self._total_tokens = total_tokens
        self._borrowers: dict[Task, None] = {}
        self._waiting: dict[Task, None] = {}

    @property
    def total_tokens(self) -> float:
        """How many tasks may be inside at once."""
        return self._total_tokens

    @property
    def borrowed_tokens(self) -> int:
        """How many tasks are inside."""
        return len(self._borrowers)

    @property
    def available_tokens(self) -> float:
        """How many more tasks may come in."""
        return self._total_tokens - len(self._borrowers)

    def acquire_nowait(self) -> None:
        """Go in.

        Raises:
            WouldBlock: The limit is reached.
            RuntimeError: The task is inside already.
        """
        task = current_task()
        if task in self._borrowers:
            raise RuntimeError("this task already holds what it is trying to acquire")
        if self.available_tokens <= 0:
            raise WouldBlock
        self._borrowers[task] = None

    async def acquire(self) -> None:
        """Go in, as soon as the limit allows it.

        Raises:
            RuntimeError: The task is inside already.
        """
        await checkpoint_if_cancelled()
        try:
            self.acquire_nowait()
        except WouldBlock:
            pass
        else:
            await cancel_shielded_checkpoint()
            return
        task = current_task()
        self._waiting[task] = None
        # `release` makes it a borrower before it wakes up.
        leave = functools.partial(leave_queue, self._waiting, task)
        await task.park(leave, "another task to release a limiter or lock")

    def release(self) -> None:
        """Go out.

        Raises:
            RuntimeError: The task is not inside.
        """
        task = current_task()
        if task not in self._borrowers:
            raise RuntimeError("this task does not hold what it is trying to release")
        del self._borrowers[task]
        if self._waiting:
            next_task = next(iter(self._waiting))
            del self._waiting[next_task]
            self._borrowers[next_task] = None
            next_task.reschedule()  # the token never was available in between

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(
        self,
        _error_type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.release()


class Lock(CapacityLimiter):
    """Lets one task at a time into a block: ``async with lock: ...``."""

    def __init__(self) -> None:
        super().__init__(1)

    def locked(self) -> bool:
        """Return whether a task is inside."""
        return self.borrowed_tokens > 0


class Semaphore:
    """A number that tasks count down, and wait for where it is 0: ``async with semaphore: ...``.

    Unlike with a ``CapacityLimiter``, any task may release it, and acquire it several times.

    Args:
        initial_value: What it counts down from.
        max_value: Most that ``release`` may make of it; None for no limit.
    """

    def __init__(self, initial_value: int, *, max_value: int | None = None) -> None:
        for name, value in (("initial_value", initial_value), ("max_value", max_value)):
            if value is not None and type(value) is not int:
                raise TypeError(f"{name} must be an int, not {value!r}")
        if initial_value < 0:
            raise ValueError(f"initial_value must be >= 0, not {initial_value}")
        if max_value is not None and max_value < initial_value:
            raise ValueError(
                f"max_value must be >= initial_value ({initial_value}), not {max_value}"
            )
        self._value = initial_value
        self._max_value = max_value
        self._waiting: dict[Task, None] = {}

    @property
    def value(self) -> int:
        """How often it can be acquired at once."""
        return self._value

    @property
    def max_value(self) -> int | None:
        """Most that it can be; None for no limit."""
        return self._max_value

    def acquire_nowait(self) -> None:
        """Count down.

        Raises:
            WouldBlock: It is 0.
        """
        if self._value == 0:
            raise WouldBlock
        self._value -= 1

    async def acquire(self) -> None:
        """Count down, as soon as it is above 0. Tasks come in the order they asked."""
        await checkpoint_if_cancelled()
        if self._value:
            self._value -= 1
            await cancel_shielded_checkpoint()
            return
        task = current_task()
        self._waiting[task] = None
        leave = functools.partial(leave_queue, self._waiting, task)
        await task.park(leave, "a Semaphore")

    def release(self) -> None:
        """Count up, or let the task that has waited longest go on.

        Raises:
            ValueError: It has its ``max_value`` already.
        """
        if self._waiting:
            task = next(iter(self._waiting))
            del self._waiting[task]
            task.reschedule()  # the value never was above 0 in between
            return
        if self._value == self._max_value:
            raise ValueError("the semaphore was released more often than acquired")
        self._value += 1

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(
        self,
        _error_type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.release()
