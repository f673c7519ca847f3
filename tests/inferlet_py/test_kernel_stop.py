"""The host asks for the end of a program: it unwinds as trio does when all is cancelled."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from inferlet_py._binding import HostInterface, bind_interfaces
from inferlet_py._cancellation import Cancelled
from inferlet_py._kernel import STOP, run, stop_in_call
from inferlet_py._nursery import open_nursery
from inferlet_py._scopes import CancelScope
from inferlet_py._tasks import wait_ticket, wait_to_take
from inferlet_py._timeouts import move_on_after, sleep
from tests.inferlet_py.kernel_twin import PIE, TRIO, VirtualWaiter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class StoppingWaiter(VirtualWaiter):
    """Asks for the end at a time, once."""

    def __init__(self, stop_at: float) -> None:
        super().__init__()
        self.stop_at: float | None = stop_at

    def wait(self, tickets: Sequence[int], deadline: float | None) -> Sequence[int]:
        if self.stop_at is None:
            return super().wait(tickets, deadline)
        earlier = self.stop_at if deadline is None else min(deadline, self.stop_at)
        ready = list(super().wait(tickets, earlier))
        if self.time >= self.stop_at:
            self.stop_at = None
            ready.append(STOP)
        return ready

    def take(self, ticket: int) -> str:
        """As a call of the host that waits: it is given up where a stop is due."""
        if STOP in self.wait([ticket], None):
            self.due_by_ticket.setdefault(ticket, self.time)
            raise HostFailure
        return "result"


class HostFailure(Exception):  # noqa: N818 - componentize-py's is Err
    """What a module of the host raises."""

    value = SimpleNamespace(
        code=SimpleNamespace(name="STOPPING"), message="it is to end"
    )


class TakeHost:
    """A call that takes what is behind a ticket."""

    def take(self, ticket: int) -> str: ...  # type: ignore[empty-body]


def bind_take(waiter: StoppingWaiter) -> TakeHost:
    module = SimpleNamespace(take=waiter.take)
    bound: TakeHost = bind_interfaces(
        [HostInterface("test", TakeHost)], {"test": module}, HostFailure
    )
    return bound


@pytest.mark.parametrize("num_tasks", [1, 2, 5])
@pytest.mark.parametrize("stop_at", [0.0, 0.5, 1.0, 3.5])
def test_all_tasks_are_cancelled_and_clean_up(num_tasks: int, stop_at: float) -> None:
    waiter = StoppingWaiter(stop_at)
    log: list[str] = []

    async def work() -> None:
        try:
            for _ in range(9):
                await wait_ticket(waiter.submit(1))
        finally:
            with CancelScope(shield=True):
                await wait_ticket(waiter.submit(1))
                await sleep(2)
            log.append("cleaned up")

    async def main() -> None:
        async with open_nursery() as nursery:
            for _ in range(num_tasks - 1):
                nursery.start_soon(work)
            await work()

    with pytest.raises(Cancelled):
        run(main, waiter=waiter)
    assert log == ["cleaned up"] * num_tasks
    assert waiter.time == stop_at + 3
    assert waiter.due_by_ticket == {}


@pytest.mark.parametrize("has_deadline", [False, True])
def test_a_stop_is_no_ready_ticket(has_deadline: bool) -> None:
    waiter = StoppingWaiter(1)
    log: list[str] = []

    async def main() -> None:
        ticket = waiter.submit(5)
        with CancelScope(shield=True), move_on_after(99 if has_deadline else 1e9):
            await wait_ticket(ticket)
            log.append(f"ready at {waiter.time}")
        await sleep(1)
        log.append("not reached")

    with pytest.raises(Cancelled):
        run(main, waiter=waiter)
    assert log == [f"ready at {5.0}"]


def test_a_program_that_sleeps_is_woken() -> None:
    waiter = StoppingWaiter(10)
    with pytest.raises(Cancelled):
        run(sleep, 1000, waiter=waiter)
    assert waiter.time == 10


def test_tasks_that_keep_each_other_busy_are_stopped_while_one_waits() -> None:
    waiter = StoppingWaiter(0)

    async def spin() -> None:
        while True:
            await sleep(0)

    async def main() -> None:
        async with open_nursery() as nursery:
            nursery.start_soon(spin)
            await wait_ticket(waiter.submit(1000))

    with pytest.raises(Cancelled):
        run(main, waiter=waiter)
    assert waiter.cancelled == [1]


def test_a_task_alone_that_takes_is_cancelled_there_and_its_ticket_withdrawn() -> None:
    waiter = StoppingWaiter(1)
    host = bind_take(waiter)
    log: list[str] = []

    async def main() -> None:
        ticket = waiter.submit(5)
        try:
            await wait_to_take(ticket)
            log.append(host.take(ticket))
        finally:
            with CancelScope(shield=True):
                again = waiter.submit(1)
                await wait_to_take(again)
                log.append(host.take(again))

    with pytest.raises(Cancelled):
        run(main, waiter=waiter)
    assert log == ["result"]
    assert waiter.time == 2
    assert waiter.cancelled == [1]
    assert waiter.due_by_ticket == {}


def test_a_shielded_task_takes_its_result_and_is_cancelled_after_that() -> None:
    waiter = StoppingWaiter(1)
    host = bind_take(waiter)
    log: list[str] = []

    async def main() -> None:
        with CancelScope(shield=True):
            ticket = waiter.submit(5)
            await wait_to_take(ticket)
            log.append(host.take(ticket))
        await sleep(1)
        log.append("not reached")

    with pytest.raises(Cancelled):
        run(main, waiter=waiter)
    assert log == ["result"]
    assert waiter.cancelled == []


def test_a_program_that_returns_all_the_same_returns() -> None:
    waiter = StoppingWaiter(1)

    async def main() -> str:
        with move_on_after(0.5):
            await sleep(9)
        return f"done at {waiter.time}"

    assert run(main, waiter=waiter) == "done at 0.5"


def test_a_stop_without_a_program_changes_nothing() -> None:
    stop_in_call(7)


async def unwind(lib: Any, log: Callable[[object], None]) -> None:
    """Leave nested blocks, each of which cleans up in its own way."""

    async def clean(name: str, seconds: float) -> None:
        scope = lib.CancelScope()
        try:
            with scope:
                await lib.sleep(60)
        finally:
            log((name, scope.cancelled_caught))
            with lib.CancelScope(shield=True):
                await lib.sleep(seconds)
            log(name)
            try:
                await lib.sleep(1)
            finally:
                log(f"{name} is not shielded any more")

    async with lib.open_nursery() as outer:
        outer.start_soon(clean, "a", 3)
        with lib.move_on_after(20) as limit:
            async with lib.open_nursery() as inner:
                inner.start_soon(clean, "b", 1)
                with lib.CancelScope(shield=True):
                    await lib.sleep(15)
                log("the shield is over")
                await clean("c", 2)
        log(limit.cancelled_caught)
        await lib.sleep(5)
        log("the end")


@pytest.mark.parametrize("stop_at", [0.5, 14, 15.5, 18, 20.5, 22, 26, 64])
def test_a_stop_unwinds_a_program_as_a_scope_of_trio_around_it_does(
    stop_at: float,
) -> None:
    expected: list[tuple[float, object]] = []
    found: list[tuple[float, object]] = []
    waiter = StoppingWaiter(stop_at)

    async def on_trio() -> None:
        with trio.move_on_at(stop_at):
            await unwind(TRIO, lambda x: expected.append((trio.current_time(), x)))

    async def on_pie() -> None:
        await unwind(PIE, lambda x: found.append((waiter.time, x)))

    trio.run(on_trio, clock=trio.testing.MockClock(autojump_threshold=0))
    with pytest.raises(Cancelled):
        run(on_pie, waiter=waiter)
    assert sorted(found, key=repr) == sorted(expected, key=repr)
