"""Tickets: when the kernel waits for the host, for what, and what it withdraws."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import traceback
from typing import TYPE_CHECKING, Any

import pytest

from inferlet_py._cancellation import Cancelled
from inferlet_py._checkpoints import checkpoint
from inferlet_py._deadlock import DeadlockError
from inferlet_py._kernel import MAX_BATCHES_BEFORE_POLL, cancel_root, run
from inferlet_py._nursery import open_nursery
from inferlet_py._scopes import CancelScope
from inferlet_py._sync import Event
from inferlet_py._tasks import current_task, wait_ticket
from inferlet_py._timeouts import (
    TooSlowError,
    fail_after,
    move_on_after,
    sleep,
    sleep_forever,
)
from tests.inferlet_py.kernel_twin import VirtualWaiter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence


@pytest.fixture
def waiter() -> VirtualWaiter:
    return VirtualWaiter()


async def wait_for(ticket: int) -> None:
    await wait_ticket(ticket)


class NothingToAwait:
    """An awaitable of another framework."""

    def __await__(self) -> Any:
        return (yield "asyncio's future")


# ---- waiting


def test_run_returns_what_the_program_returns(waiter: VirtualWaiter) -> None:
    async def main(left: int, right: int) -> int:
        return left + right

    assert run(main, 1, 2, waiter=waiter) == 3
    assert waiter.waits == []


def test_a_lone_task_waits_for_one_ticket_at_a_time(waiter: VirtualWaiter) -> None:
    async def main() -> float:
        for _ in range(3):
            await wait_ticket(waiter.submit(1))
        return waiter.now()

    assert run(main, waiter=waiter) == 3
    assert waiter.waits == [(1,), (2,), (3,)]


def test_all_branches_submit_before_any_waits(waiter: VirtualWaiter) -> None:
    log: list[tuple[int, float]] = []

    async def branch(number: int) -> None:
        for _ in range(2):
            await wait_ticket(waiter.submit(1))
            log.append((number, waiter.now()))

    async def main() -> None:
        async with open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(branch, number)

    run(main, waiter=waiter)

    assert waiter.waits == [(1, 2, 3, 4), (5, 6, 7, 8)]
    assert log == [(n, 1) for n in range(4)] + [(n, 2) for n in range(4)]


def test_who_is_ready_first_goes_on_first(waiter: VirtualWaiter) -> None:
    log: list[float] = []

    async def branch(seconds: float) -> None:
        await wait_ticket(waiter.submit(seconds))
        log.append(seconds)

    async def main() -> None:
        async with open_nursery() as nursery:
            for seconds in (3, 1, 2):
                nursery.start_soon(branch, seconds)

    run(main, waiter=waiter)

    assert log == [1, 2, 3]
    assert waiter.waits == [(1, 2, 3), (1, 3), (1,)]


def test_a_task_may_wait_while_others_are_blocked_on_it(waiter: VirtualWaiter) -> None:
    async def main() -> None:
        event = Event()
        async with open_nursery() as nursery:
            nursery.start_soon(event.wait)
            await checkpoint()
            for _ in range(3):
                await wait_ticket(waiter.submit(1))
            event.set()

    run(main, waiter=waiter)

    assert waiter.waits == [(1,), (2,), (3,)]


def test_a_sleeper_wakes_up_while_a_ticket_is_awaited(waiter: VirtualWaiter) -> None:
    log: list[object] = []

    async def sleeper() -> None:
        await sleep(1)
        log.append(("slept", waiter.now()))

    async def main() -> None:
        async with open_nursery() as nursery:
            nursery.start_soon(sleeper)
            await checkpoint()
            for _ in range(2):
                await wait_ticket(waiter.submit(0.75))
                log.append(waiter.now())

    run(main, waiter=waiter)

    assert log == [0.75, ("slept", 1), 1.5]


def test_busy_tasks_do_not_starve_one_that_waits_for_a_ticket(
    waiter: VirtualWaiter,
) -> None:
    num_turns = 0

    async def main() -> None:
        nonlocal num_turns
        async with open_nursery() as nursery:
            done = Event()

            async def wait() -> None:
                await wait_ticket(waiter.submit(0))
                done.set()

            nursery.start_soon(wait)
            while not done.is_set():
                await checkpoint()
                num_turns += 1

    run(main, waiter=waiter)

    assert num_turns <= MAX_BATCHES_BEFORE_POLL + 5


def test_one_ticket_cannot_be_awaited_twice(waiter: VirtualWaiter) -> None:
    async def main() -> None:
        ticket = waiter.submit(1)
        async with open_nursery() as nursery:
            nursery.start_soon(wait_for, ticket, name="first")
            nursery.start_soon(wait_for, ticket)

    with pytest.raises(ExceptionGroup) as caught:
        run(main, waiter=waiter)
    assert str(caught.value.exceptions[0]) == (
        "ticket 1 is already awaited, by task first"
    )
    assert waiter.cancelled == [1]


# ---- cancelling


def test_a_cancelled_wait_withdraws_its_command(waiter: VirtualWaiter) -> None:
    async def main() -> float:
        with move_on_after(1) as scope:
            await wait_ticket(waiter.submit(5))
        assert scope.cancelled_caught
        return waiter.now()

    assert run(main, waiter=waiter) == 1
    assert waiter.cancelled == [1]


def test_a_failing_branch_withdraws_the_commands_of_the_others(
    waiter: VirtualWaiter,
) -> None:
    async def fail() -> None:
        await wait_ticket(waiter.submit(1))
        raise ValueError

    async def main() -> None:
        async with open_nursery() as nursery:
            nursery.start_soon(wait_for, waiter.submit(5))
            nursery.start_soon(fail)
            nursery.start_soon(wait_for, waiter.submit(5))

    with pytest.raises(ExceptionGroup):
        run(main, waiter=waiter)
    assert waiter.cancelled == [1, 2]
    assert waiter.due_by_ticket == {}


def test_a_command_of_a_cancelled_scope_is_withdrawn_without_waiting(
    waiter: VirtualWaiter,
) -> None:
    async def main() -> None:
        with CancelScope() as scope:
            scope.cancel()
            await wait_ticket(waiter.submit(0))
            pytest.fail("not reached")

    run(main, waiter=waiter)

    assert waiter.waits == []
    assert waiter.cancelled == [1]


@pytest.mark.parametrize("has_sibling", [False, True])
def test_a_result_that_is_ready_with_the_deadline_wins(
    waiter: VirtualWaiter, has_sibling: bool
) -> None:
    log: list[str] = []

    async def worker() -> None:
        with move_on_after(1) as scope:
            await wait_ticket(waiter.submit(1))
            log.append("result")
            await wait_ticket(waiter.submit(0))
            log.append("not reached")
        log.append(f"caught {scope.cancelled_caught}")

    async def main() -> None:
        async with open_nursery() as nursery:
            nursery.start_soon(worker)
            if has_sibling:
                nursery.start_soon(wait_for, waiter.submit(9))

    run(main, waiter=waiter)

    assert log == ["result", "caught True"]


def test_the_deadline_is_handed_to_the_host(waiter: VirtualWaiter) -> None:
    deadlines: list[float | None] = []

    class Recorder(VirtualWaiter):
        def wait(self, tickets: Sequence[int], deadline: float | None) -> Sequence[int]:
            deadlines.append(deadline)
            return super().wait(tickets, deadline)

    async def main() -> None:
        with move_on_after(5) as scope:
            scope.cancel()  # so its deadline no longer matters
            with CancelScope(shield=True):
                await wait_ticket(recorder.submit(1))
        with fail_after(5), move_on_after(7):
            await wait_ticket(recorder.submit(1))
        await sleep(3)
        with pytest.raises(TooSlowError), fail_after(5):
            await wait_ticket(recorder.submit(9))

    recorder = Recorder()
    run(main, waiter=recorder)

    assert deadlines == [None, 6, 5, 10]


def test_deadlines_of_closed_scopes_do_not_pile_up(waiter: VirtualWaiter) -> None:
    num_entries: list[int] = []

    async def main() -> None:
        with move_on_after(10):
            for _ in range(1000):
                with move_on_after(60):
                    await wait_ticket(waiter.submit(0))
            num_entries.append(len(current_task().scheduler.deadlines._heap))

    run(main, waiter=waiter)

    assert num_entries[0] < 100


# ---- the host stops the program


class StoppingWaiter(VirtualWaiter):
    """Cancels the program in its second wait, as the host may."""

    is_ticket_ready_too = False

    def wait(self, tickets: Sequence[int], deadline: float | None) -> Sequence[int]:
        if len(self.waits) != 1:
            return super().wait(tickets, deadline)
        self.waits.append(tuple(tickets))
        cancel_root()
        return tickets if self.is_ticket_ready_too else []


@pytest.mark.parametrize("num_tasks", [1, 2])
def test_the_host_can_cancel_the_root(num_tasks: int) -> None:
    waiter = StoppingWaiter()
    log: list[str] = []

    async def work() -> None:
        try:
            for _ in range(5):
                await wait_ticket(waiter.submit(1))
        finally:
            with CancelScope(shield=True):
                await wait_ticket(waiter.submit(1))
            log.append("cleaned up")

    async def main() -> None:
        async with open_nursery() as nursery:
            for _ in range(num_tasks - 1):
                nursery.start_soon(work)
            await work()

    with pytest.raises(Cancelled):
        run(main, waiter=waiter)
    assert log == ["cleaned up"] * num_tasks
    assert waiter.due_by_ticket == {}


@pytest.mark.parametrize("num_tasks", [1, 2])
def test_tickets_may_be_ready_in_the_moment_the_root_is_cancelled(
    num_tasks: int,
) -> None:
    waiter = StoppingWaiter()
    waiter.is_ticket_ready_too = True

    async def work() -> None:
        for _ in range(5):
            await wait_ticket(waiter.submit(1))

    async def main() -> None:
        async with open_nursery() as nursery:
            for _ in range(num_tasks):
                nursery.start_soon(work)

    with pytest.raises(Cancelled):
        run(main, waiter=waiter)


def test_a_program_that_survives_its_cancellation_returns(
    waiter: VirtualWaiter,
) -> None:
    async def main() -> str:
        cancel_root()
        return "finished all the same"

    assert run(main, waiter=waiter) == "finished all the same"


def test_an_error_in_a_cancelled_program_comes_out(waiter: VirtualWaiter) -> None:
    async def main() -> None:
        async with open_nursery() as nursery:
            nursery.start_soon(sleep_forever)
            cancel_root()
            raise ValueError("mine")

    with pytest.raises(ExceptionGroup) as caught:
        run(main, waiter=waiter)
    assert [str(error) for error in caught.value.exceptions] == ["mine"]


def test_an_error_that_ends_a_cancelled_program_comes_out_as_it_is(
    waiter: VirtualWaiter,
) -> None:
    async def main() -> None:
        cancel_root()
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        run(main, waiter=waiter)


@pytest.mark.parametrize("num_tasks", [1, 2])
def test_an_error_of_the_host_is_raised_in_the_root(num_tasks: int) -> None:
    class FailingWaiter(VirtualWaiter):
        def wait(self, tickets: Sequence[int], deadline: float | None) -> Sequence[int]:
            self.waits.append(tuple(tickets))
            raise KeyboardInterrupt

    waiter = FailingWaiter()

    async def main() -> None:
        async with open_nursery() as nursery:
            for _ in range(num_tasks - 1):
                nursery.start_soon(wait_for, waiter.submit(1))
            with pytest.raises(KeyboardInterrupt):
                await wait_ticket(waiter.submit(1))
            nursery.cancel_scope.cancel()

    run(main, waiter=waiter)

    assert len(waiter.waits) == 1
    assert waiter.due_by_ticket == {}


# ---- deadlocks


def test_a_deadlock_names_the_tasks_and_what_they_wait_for(
    waiter: VirtualWaiter,
) -> None:
    async def child(event: Event) -> None:
        await event.wait()

    async def main() -> None:
        async with open_nursery() as nursery:
            nursery.start_soon(child, Event(), name="starving")
            nursery.start_soon(sleep_forever)

    with pytest.raises(ExceptionGroup) as caught:
        run(main, waiter=waiter)

    (error,) = caught.value.exceptions
    assert isinstance(error, DeadlockError)
    lines = str(error).splitlines()
    assert lines[0].startswith("all tasks are blocked")
    first_line = child.__code__.co_firstlineno
    assert lines[1].strip().startswith(f"{main.__qualname__} waits for the tasks of")
    assert lines[2].strip() == (
        f"starving waits for an Event ({__file__}:{first_line + 1})"
    )
    assert lines[3].strip() == (
        "sleep_forever waits for its cancellation (sleep_forever)"
    )


def test_a_deadlock_is_raised_in_the_root(waiter: VirtualWaiter) -> None:
    async def main() -> str:
        try:
            await Event().wait()
        except DeadlockError:
            return "caught"
        return "not reached"

    assert run(main, waiter=waiter) == "caught"


def test_a_deadlock_ends_shielded_tasks_too(waiter: VirtualWaiter) -> None:
    async def hide() -> None:
        with CancelScope(shield=True):
            await Event().wait()

    async def main() -> None:
        async with open_nursery() as nursery:
            nursery.start_soon(hide)
            nursery.start_soon(hide)

    with pytest.raises(ExceptionGroup) as caught:
        run(main, waiter=waiter)
    assert [type(e) for e in caught.value.exceptions] == [DeadlockError] * 3


# ---- misuse, errors and what is left behind


def test_run_cannot_be_nested(waiter: VirtualWaiter) -> None:
    async def main() -> None:
        run(checkpoint, waiter=waiter)

    with pytest.raises(RuntimeError, match="inside of run"):
        run(main, waiter=waiter)
    run(checkpoint, waiter=waiter)  # the failure left nothing behind


@pytest.mark.parametrize("call", [current_task, cancel_root])
def test_outside_of_run_there_is_no_task(call: Callable[[], object]) -> None:
    with pytest.raises(RuntimeError):
        call()


def test_only_async_functions_can_be_run(waiter: VirtualWaiter) -> None:
    with pytest.raises(TypeError, match="async function"):
        run(lambda: None, waiter=waiter)  # type: ignore[arg-type, return-value]


def test_awaiting_another_framework_is_an_error_there(waiter: VirtualWaiter) -> None:
    async def main() -> str:
        try:
            await NothingToAwait()
        except TypeError as error:
            await checkpoint()
            return str(error)
        return "not reached"

    assert "asyncio's future" in run(main, waiter=waiter)


def test_the_context_of_the_caller_is_seen_but_not_changed(
    waiter: VirtualWaiter,
) -> None:
    var = contextvars.ContextVar("var", default="unset")

    async def main() -> str:
        seen = var.get()
        var.set("changed")
        return seen

    token = var.set("caller's")
    assert run(main, waiter=waiter) == "caller's"
    assert var.get() == "caller's"
    var.reset(token)


async def _fail_deep_inside() -> None:
    async with open_nursery() as nursery:
        nursery.start_soon(_fail)


async def _fail() -> None:
    with fail_after(5), CancelScope():
        await checkpoint()
        raise ValueError("the author's")


def test_the_traceback_of_a_task_starts_with_its_own_code(
    waiter: VirtualWaiter,
) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        run(_fail_deep_inside, waiter=waiter)

    assert str(caught.value) == "Exceptions from Pie nursery (1 sub-exception)"
    inner = traceback.extract_tb(caught.value.exceptions[0].__traceback__)
    assert [frame.name for frame in inner] == ["_fail"]
    outer = traceback.extract_tb(caught.value.__traceback__)
    authors = [frame.name for frame in outer if "/inferlet_py/_" not in frame.filename]
    assert authors[1:] == ["_fail_deep_inside"]  # the first is this test
    assert len(outer) - len(authors) <= 4


@pytest.mark.parametrize("program", [_fail_deep_inside, checkpoint])
def test_nothing_is_left_to_the_garbage_collector(
    waiter: VirtualWaiter, program: Callable[[], Awaitable[None]]
) -> None:
    async def main() -> None:
        async with open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(program)
            nursery.start_soon(sleep, 1)
        with move_on_after(1):
            await sleep_forever()

    def run_once() -> None:
        with contextlib.suppress(ExceptionGroup):
            run(main, waiter=waiter)

    run_once()
    gc.collect()
    gc.disable()
    try:
        run_once()
        assert gc.collect() == 0
    finally:
        gc.enable()
