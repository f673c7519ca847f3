"""Runs one program twice, under trio and under our kernel, each with virtual time."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from inferlet_py import (
    _cancellation,
    _channels,
    _checkpoints,
    _kernel,
    _nursery,
    _scopes,
    _sync,
    _tasks,
    _timeouts,
)

Program = Callable[[Any, Callable[[object], None]], Awaitable[object]]

TRIO = SimpleNamespace(
    **vars(trio),
    checkpoint=trio.lowlevel.checkpoint,
    checkpoint_if_cancelled=trio.lowlevel.checkpoint_if_cancelled,
    cancel_shielded_checkpoint=trio.lowlevel.cancel_shielded_checkpoint,
)
PIE = SimpleNamespace(
    **{
        name: value
        for module in (
            _cancellation,
            _channels,
            _checkpoints,
            _nursery,
            _scopes,
            _sync,
            _timeouts,
        )
        for name, value in vars(module).items()
        if not name.startswith("_")
    }
)


class VirtualWaiter:
    """A host whose clock jumps; its commands take as long as they were told to."""

    def __init__(self) -> None:
        self.time = 0.0
        self.due_by_ticket: dict[int, float] = {}
        self.waits: list[tuple[int, ...]] = []
        self.cancelled: list[int] = []
        self._last_ticket = 0

    def submit(self, seconds: float) -> int:
        """Enqueue a command; never suspends, as host calls do not either."""
        self._last_ticket += 1
        self.due_by_ticket[self._last_ticket] = self.time + seconds
        return self._last_ticket

    def now(self) -> float:
        return self.time

    def wait(self, tickets: Sequence[int], deadline: float | None) -> Sequence[int]:
        self.waits.append(tuple(tickets))
        first_due = min((self.due_by_ticket[t] for t in tickets), default=math.inf)
        wake_at = min(first_due, math.inf if deadline is None else deadline)
        assert wake_at != math.inf, "the kernel waits for nothing"
        self.time = max(self.time, wake_at)
        ready = [t for t in tickets if self.due_by_ticket[t] <= self.time]
        for ticket in ready:
            del self.due_by_ticket[ticket]
        return ready

    def cancel(self, ticket: int) -> None:
        del self.due_by_ticket[ticket]
        self.cancelled.append(ticket)


@dataclass
class Result:
    """What can be seen of a program from outside."""

    log: list[tuple[float, object]] = field(default_factory=list)
    returned: object = None
    raised: object = None


def describe(error: BaseException) -> object:
    """Return the shape of an error, in words that fit both libraries."""
    if isinstance(error, BaseExceptionGroup):
        message = error.message.replace("Pie nursery", "Trio nursery")
        return (type(error).__name__, message, [describe(e) for e in error.exceptions])
    # The messages of RuntimeError and the like are our own; those of programs count.
    is_own = type(error) in {ValueError, KeyError, OSError}
    return type(error).__name__, error.args if is_own else None


def run_on_trio(program: Program, *, is_fifo: bool = True) -> Result:
    result = Result()

    def log(what: object) -> None:
        result.log.append((trio.current_time(), what))

    async def main() -> object:
        return await program(TRIO, log)

    with _deterministic_trio(is_fifo=is_fifo):
        try:
            clock = trio.testing.MockClock(autojump_threshold=0)
            result.returned = trio.run(main, clock=clock)
        except BaseException as error:  # noqa: BLE001  # it is the result
            result.raised = describe(error)
    return result


def run_on_pie(program: Program, *, is_fifo: bool = True) -> Result:
    result = Result()
    waiter = VirtualWaiter()

    def log(what: object) -> None:
        result.log.append((waiter.time, what))

    async def main() -> object:
        return await program(PIE, log)

    kernel = (_kernel.Kernel if is_fifo else _SortingKernel)(waiter)
    try:
        result.returned = kernel.run(main)
    except BaseException as error:  # noqa: BLE001  # it is the result
        result.raised = describe(error)
    assert not kernel.deadlines, "a deadline outlived its scope"
    return result


class _SortingKernel(_kernel.Kernel):
    """Runs each batch oldest task first, whoever was rescheduled first."""

    def _next_batch_size(self) -> int:
        age_by_task = {task: age for age, task in enumerate(self._tasks)}
        batch: list[_tasks.Task] = sorted(self.runnable, key=age_by_task.__getitem__)
        self.runnable.clear()
        self.runnable.extend(batch)
        return len(batch)


class _NoRandom:
    def random(self) -> float:
        return 0.0  # reverse the batch, which trio then takes from the end

    def shuffle(self, batch: list[object]) -> None:
        batch.reverse()


class _OrderedSet(dict[Any, None]):
    """Stands in for the sets of trio that decide who is woken up first."""

    def add(self, item: object) -> None:
        self[item] = None

    def remove(self, item: object) -> None:
        del self[item]


class _LastFirst(_OrderedSet):
    def __iter__(self) -> Iterator[Any]:
        return reversed(self)  # trio visits what it takes from here from the end


class _OrderedCancelStatus(trio._core._run.CancelStatus):
    def __attrs_post_init__(self) -> None:
        self._tasks: Any = _OrderedSet()
        self._children: Any = _LastFirst()
        super().__attrs_post_init__()


@contextmanager
def _deterministic_trio(*, is_fifo: bool) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        run_module = trio._core._run
        patch.setattr(run_module, "_r", _NoRandom())
        patch.setattr(run_module, "CancelStatus", _OrderedCancelStatus)
        patch.setattr(run_module, "_ALLOW_DETERMINISTIC_SCHEDULING", not is_fifo)
        yield
