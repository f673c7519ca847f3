"""Makes a run of trio the same each time: its scheduler, threads, and the time that guests take."""

from __future__ import annotations

import gc
import random
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import pytest
import trio

from pie_trio.application.lifecycle import instances
from pie_trio.application.wasm import fiber

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

THREAD_SECONDS = 0.004
"""What a call in a thread takes, of trio's time."""


class SeededBytes:
    """Where guests get their random numbers."""

    def __init__(self) -> None:
        self._source = random.Random(0)

    def seed(self, seed: int) -> None:
        self._source.seed(seed)

    def __call__(self, count: int) -> bytes:
        return self._source.randbytes(count)


class _CpuClock:
    """As ``time.thread_time``: what a turn of a guest has taken is drawn, not measured."""

    def __init__(self, seed: int) -> None:
        self._source = random.Random(seed)
        self._now = 0.0

    def __call__(self) -> float:
        self._now += self._source.choice((0.0, 0.00005, 0.0003))
        return self._now


class _OrderedSet(dict[Any, None]):
    """As a set, whose order would depend on where its members are in memory."""

    def __init__(self, members: Iterable[Any] = ()) -> None:
        super().__init__((member, None) for member in members)

    def add(self, member: Any) -> None:
        self[member] = None

    def remove(self, member: Any) -> None:
        del self[member]

    def discard(self, member: Any) -> None:
        self.pop(member, None)

    def __iter__(self) -> Iterator[Any]:
        return iter(list(super().keys()))


_CancelStatus: Any = trio._core._run.CancelStatus


class _OrderedCancelStatus(_CancelStatus):  # type: ignore[misc]
    def __attrs_post_init__(self) -> None:
        self._tasks: Any = _OrderedSet()
        self._children: Any = _OrderedSet()
        super().__attrs_post_init__()


async def _run_sync(
    function: Callable[..., Any],
    *args: Any,
    abandon_on_cancel: bool = False,
    limiter: trio.CapacityLimiter | None = None,
    **_details: Any,
) -> Any:
    """As ``trio.to_thread.run_sync``: what it calls happens in the middle of its time."""
    async with nullcontext() if limiter is None else limiter:
        with trio.CancelScope(shield=not abandon_on_cancel):
            await trio.sleep(THREAD_SECONDS / 2)
            try:
                return function(*args)
            finally:
                await trio.sleep(THREAD_SECONDS / 2)


@contextmanager
def repeatable(seed: int) -> Generator[None]:
    """Let what happens in the block depend on the seed alone, on any machine."""
    run_module: Any = trio._core._run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
        patch.setattr(run_module, "_r", random.Random(seed))
        patch.setattr(run_module, "CancelStatus", _OrderedCancelStatus)
        patch.setattr(trio.to_thread, "run_sync", _run_sync)
        clock = _CpuClock(seed)
        for module in (fiber, instances):
            patch.setattr(module, "thread_time", clock)
        gc.collect()
        gc.disable()  # when it runs, owners that nobody names any more are forgotten
        try:
            yield
        finally:
            gc.enable()
