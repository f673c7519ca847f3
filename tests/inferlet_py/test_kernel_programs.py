"""One program, two runtimes: whatever trio does, our kernel does too.

The order of events is compared too. So no program lets two tasks wake up at exactly the same
time by themselves: trio would order them by address.
"""

from __future__ import annotations

import contextvars
import functools
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from tests.inferlet_py.kernel_twin import Program, run_on_pie, run_on_trio

Log = Callable[[object], None]

PROGRAMS: list[Any] = []


def program(fn: Program) -> Program:
    PROGRAMS.append(pytest.param(fn, id=fn.__name__))
    return fn


@pytest.mark.parametrize("fn", PROGRAMS)
def test_a_program_does_the_same_as_under_trio(fn: Program) -> None:
    expected, actual = run_on_trio(fn), run_on_pie(fn)

    assert expected.log or expected.raised or expected.returned, "proves nothing"
    assert actual == expected


# ---- helpers of the programs


async def sleep_and_log(lib: Any, log: Log, seconds: float, name: object) -> None:
    log(f"{name} starts")
    try:
        await lib.sleep(seconds)
        log(f"{name} ends")
    except BaseException as error:
        log(f"{name} gets {type(error).__name__}")
        raise


async def wait_and_log(lib: Any, log: Log) -> None:
    try:
        await lib.sleep_forever()
    except BaseException as error:
        log(f"wait ends with {type(error).__name__}")
        raise


async def sleep_and_raise(lib: Any, seconds: float, error: BaseException) -> None:
    await lib.sleep(seconds)
    raise error


async def count(lib: Any, log: Log, name: str, times: int) -> None:
    for number in range(times):
        log((name, number))
        await lib.checkpoint()


def look(scope: Any) -> tuple[bool, bool]:
    return scope.cancel_called, scope.cancelled_caught


# ---- tasks and nurseries


@program
async def a_nursery_waits_for_its_children(lib: Any, log: Log) -> str:
    async with lib.open_nursery() as nursery:
        nursery.start_soon(sleep_and_log, lib, log, 2, "two")
        nursery.start_soon(sleep_and_log, lib, log, 1, "one")
        log("body ends")
    log("closed")
    return "returned"


@program
async def tasks_take_turns_in_order(lib: Any, log: Log) -> None:
    async with lib.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(count, lib, log, name, 3)
        await count(lib, log, "body", 3)


@program
async def closing_an_empty_nursery_lets_others_run(lib: Any, log: Log) -> None:
    async with lib.open_nursery() as outer:
        outer.start_soon(count, lib, log, "other", 3)
        async with lib.open_nursery():
            log("inner body")
        log("inner closed")
        async with lib.open_nursery():
            pass
        log("inner closed again")


@program
async def an_error_of_a_child_is_wrapped_and_cancels_the_rest(
    lib: Any, log: Log
) -> None:
    async with lib.open_nursery() as nursery:
        nursery.start_soon(sleep_and_log, lib, log, 5, "sibling")
        nursery.start_soon(sleep_and_raise, lib, 1, ValueError("child"))
        await sleep_and_log(lib, log, 9, "body")


@program
async def an_error_of_the_body_is_wrapped_and_cancels_the_children(
    lib: Any, log: Log
) -> None:
    async with lib.open_nursery() as nursery:
        nursery.start_soon(sleep_and_log, lib, log, 5, "child")
        await lib.sleep(1)
        raise ValueError("body")


@program
async def a_child_that_never_ran_is_cancelled_at_its_first_checkpoint(
    lib: Any, log: Log
) -> None:
    async with lib.open_nursery() as nursery:
        nursery.start_soon(sleep_and_log, lib, log, 5, "child")
        raise ValueError("body")


@program
async def errors_of_one_moment_come_out_together(lib: Any, log: Log) -> None:
    async def fail(name: str) -> None:
        await lib.checkpoint()
        log(name)
        raise ValueError(name)

    async with lib.open_nursery() as nursery:
        nursery.start_soon(fail, "a")
        nursery.start_soon(fail, "b")
        nursery.start_soon(sleep_and_log, lib, log, 5, "sibling")


@program
async def an_error_of_the_cleanup_joins_the_first_one(lib: Any, log: Log) -> None:
    async def clean_up_badly() -> None:
        try:
            await lib.sleep_forever()
        finally:
            log("cleanup")
            raise KeyError("cleanup")

    async with lib.open_nursery() as nursery:
        nursery.start_soon(clean_up_badly)
        nursery.start_soon(sleep_and_raise, lib, 1, ValueError("first"))


@program
async def nested_nurseries_raise_nested_groups(lib: Any, log: Log) -> None:
    async def inner() -> None:
        async with lib.open_nursery() as nursery:
            nursery.start_soon(sleep_and_raise, lib, 1, ValueError("deep"))
            nursery.start_soon(sleep_and_log, lib, log, 3, "cousin")

    async with lib.open_nursery() as outer:
        outer.start_soon(inner)
        outer.start_soon(sleep_and_log, lib, log, 3, "uncle")


@program
async def a_base_exception_makes_a_base_group(lib: Any, log: Log) -> None:
    class Stop(BaseException):
        pass

    log("start")
    async with lib.open_nursery() as nursery:
        nursery.start_soon(sleep_and_raise, lib, 1, Stop())
        nursery.start_soon(sleep_and_raise, lib, 2, ValueError("never"))


@program
async def except_star_takes_its_part_of_a_group(lib: Any, log: Log) -> None:
    async def fail(error: Exception) -> None:
        raise error

    try:
        async with lib.open_nursery() as nursery:
            nursery.start_soon(fail, ValueError("a"))
            nursery.start_soon(fail, KeyError("b"))
    except* ValueError as group:
        log(repr(group.exceptions))


@program
async def children_may_start_siblings_while_the_nursery_closes(
    lib: Any, log: Log
) -> None:
    async def parent(nursery: Any) -> None:
        await lib.sleep(1)
        nursery.start_soon(sleep_and_log, lib, log, 1, "grandchild")

    async with lib.open_nursery() as nursery:
        nursery.start_soon(parent, nursery)
    log("closed")


@program
async def a_closed_nursery_refuses_tasks(lib: Any, log: Log) -> None:
    async with lib.open_nursery() as nursery:
        log("open")
    nursery.start_soon(lib.sleep, 1)


@program
async def a_closed_nursery_refuses_start(lib: Any, log: Log) -> None:
    async with lib.open_nursery() as nursery:
        log("open")
    await nursery.start(lib.sleep, 1)


@program
async def only_async_functions_can_be_started(lib: Any, log: Log) -> None:
    log("start")
    async with lib.open_nursery() as nursery:
        nursery.start_soon(lambda: None)


@program
async def a_partial_can_be_started(lib: Any, log: Log) -> None:
    async with lib.open_nursery() as nursery:
        nursery.start_soon(
            functools.partial(sleep_and_log, lib, log, seconds=1, name="partial")
        )


@program
async def a_nursery_may_be_opened_in_every_child(lib: Any, log: Log) -> None:
    async def tree(depth: int, name: str) -> None:
        log(name)
        async with lib.open_nursery() as nursery:
            for number in range(depth):
                nursery.start_soon(tree, depth - 1, f"{name}.{number}")
        log(f"{name} closed")

    await tree(3, "root")


@program
async def each_task_has_its_own_context(lib: Any, log: Log) -> None:
    var = contextvars.ContextVar("var", default="unset")

    async def child(name: str) -> None:
        log((name, var.get()))
        var.set(name)
        await lib.checkpoint()
        log((name, var.get()))

    var.set("parent")
    async with lib.open_nursery() as nursery:
        nursery.start_soon(child, "a")
        var.set("changed")
        nursery.start_soon(child, "b")
    log(var.get())


@program
async def an_error_that_is_not_grouped_comes_out_as_it_is(lib: Any, log: Log) -> None:
    log("start")
    await lib.checkpoint()
    raise ValueError("plain")


@program
async def the_cancel_scope_of_a_nursery_stops_its_children(lib: Any, log: Log) -> None:
    async with lib.open_nursery() as nursery:
        nursery.start_soon(sleep_and_log, lib, log, 5, "child")
        await lib.sleep(1)
        nursery.cancel_scope.cancel()
        log("still running")
        await lib.checkpoint()
        log("not reached")
    log(look(nursery.cancel_scope))


@program
async def a_cancelled_nursery_whose_body_ends_in_time_catches_nothing(
    lib: Any, log: Log
) -> None:
    async with lib.open_nursery() as nursery:
        nursery.cancel_scope.cancel()
    log(look(nursery.cancel_scope))


@program
async def a_child_may_cancel_its_nursery(lib: Any, log: Log) -> None:
    async def child(nursery: Any) -> None:
        await lib.sleep(1)
        nursery.cancel_scope.cancel()
        log("cancelled it")
        await lib.sleep(1)

    async with lib.open_nursery() as nursery:
        nursery.start_soon(child, nursery)
        await sleep_and_log(lib, log, 9, "body")
    log(look(nursery.cancel_scope))


@program
async def a_task_started_in_a_cancelled_nursery_runs_to_a_checkpoint(
    lib: Any, log: Log
) -> None:
    async with lib.open_nursery() as nursery:
        nursery.cancel_scope.cancel()
        nursery.start_soon(sleep_and_log, lib, log, 5, "child")
    log("closed")


@program
async def a_nursery_waits_for_shielded_children_when_cancelled(
    lib: Any, log: Log
) -> None:
    async def child() -> None:
        with lib.CancelScope(shield=True):
            await sleep_and_log(lib, log, 3, "shielded")
        await sleep_and_log(lib, log, 3, "open")

    with lib.move_on_after(1) as scope:
        async with lib.open_nursery() as nursery:
            nursery.start_soon(child)
            await sleep_and_log(lib, log, 9, "body")
    log(look(scope))


@program
async def a_nursery_that_only_waits_is_no_checkpoint_of_its_own(
    lib: Any, log: Log
) -> None:
    async def child() -> None:
        with lib.CancelScope(shield=True):
            await lib.sleep(2)

    with lib.move_on_after(1) as scope:
        async with lib.open_nursery() as nursery:
            nursery.start_soon(child)
        log("closed")
    log(look(scope))


# ---- cancel scopes


@program
async def a_timeout_stops_the_block(lib: Any, log: Log) -> None:
    with lib.move_on_after(1) as scope:
        await sleep_and_log(lib, log, 2, "inside")
    log(look(scope))


@program
async def a_block_that_ends_in_time_is_left_alone(lib: Any, log: Log) -> None:
    with lib.move_on_after(2) as scope:
        await sleep_and_log(lib, log, 1, "inside")
    await lib.sleep(5)
    log(look(scope))


@program
async def cancellation_is_delivered_again_and_again(lib: Any, log: Log) -> None:
    with lib.CancelScope() as scope:
        scope.cancel()
        for _ in range(3):
            try:
                await lib.checkpoint()
            except lib.Cancelled:
                log("cancelled")
        log("swallowed")
    log(look(scope))


@program
async def cancel_without_a_checkpoint_catches_nothing(lib: Any, log: Log) -> None:
    with lib.CancelScope() as scope:
        scope.cancel()
        log("goes on")
    log(look(scope))


@program
async def awaiting_in_finally_is_cancelled_too(lib: Any, log: Log) -> None:
    with lib.move_on_after(1):
        try:
            await lib.sleep(5)
        finally:
            await sleep_and_log(lib, log, 1, "cleanup")
            log("not reached")


@program
async def a_bounded_shield_lets_the_cleanup_finish(lib: Any, log: Log) -> None:
    with lib.move_on_after(1) as scope:
        try:
            await lib.sleep(5)
        finally:
            with lib.move_on_after(3, shield=True) as cleanup:
                await sleep_and_log(lib, log, 2, "cleanup")
            log(look(cleanup))
    log(look(scope))


@program
async def a_bounded_shield_ends_a_cleanup_that_hangs(lib: Any, log: Log) -> None:
    with lib.move_on_after(1) as scope:
        try:
            await lib.sleep(5)
        finally:
            with lib.move_on_after(3, shield=True) as cleanup:
                await sleep_and_log(lib, log, 99, "cleanup")
            log(look(cleanup))
            await lib.checkpoint()
            log("not reached")
    log(look(scope))


@program
async def a_shield_hides_the_outside_until_it_ends(lib: Any, log: Log) -> None:
    with lib.move_on_after(1) as scope:
        with lib.CancelScope(shield=True):
            await sleep_and_log(lib, log, 2, "shielded")
        log("shield ends")
        await lib.checkpoint()
        log("not reached")
    log(look(scope))


@program
async def lowering_a_shield_cancels_at_once(lib: Any, log: Log) -> None:
    async def lower(shield: Any) -> None:
        with lib.CancelScope(shield=True):
            await lib.sleep(3)
        shield.shield = False

    with lib.move_on_after(1) as scope:
        async with lib.open_nursery() as nursery:
            with lib.CancelScope(shield=True) as shield:
                nursery.start_soon(lower, shield)
                await sleep_and_log(lib, log, 9, "shielded")
            log("not reached")
    log((look(scope), look(shield)))


@program
async def raising_a_shield_ends_a_cancellation(lib: Any, log: Log) -> None:
    with lib.CancelScope() as outer:
        outer.cancel()
        with lib.CancelScope() as inner:
            try:
                await lib.checkpoint()
            except lib.Cancelled:
                log("cancelled")
            inner.shield = True
            await sleep_and_log(lib, log, 1, "inside")
        await lib.checkpoint()
    log((look(outer), look(inner)))


@program
async def a_shielded_scope_can_itself_be_cancelled(lib: Any, log: Log) -> None:
    with lib.CancelScope(shield=True) as scope:
        scope.cancel()
        await sleep_and_log(lib, log, 1, "inside")
    log(look(scope))


@program
async def the_inner_deadline_comes_first(lib: Any, log: Log) -> None:
    with lib.move_on_after(3) as outer:
        with lib.move_on_after(1) as inner:
            await sleep_and_log(lib, log, 9, "inside")
        log(look(inner))
        await sleep_and_log(lib, log, 9, "between")
    log((look(outer), look(inner)))


@program
async def the_outer_deadline_comes_first(lib: Any, log: Log) -> None:
    with lib.move_on_after(1) as outer:
        with lib.move_on_after(3) as inner:
            await sleep_and_log(lib, log, 9, "inside")
        log("not reached")
    log((look(outer), look(inner)))


@program
async def of_two_equal_deadlines_the_outer_one_catches(lib: Any, log: Log) -> None:
    with lib.move_on_after(1) as outer:
        with lib.move_on_after(1) as inner:
            await sleep_and_log(lib, log, 9, "inside")
        log("not reached")
    log((look(outer), look(inner)))


@program
async def a_sleep_as_long_as_its_timeout_is_cancelled(lib: Any, log: Log) -> None:
    with lib.move_on_after(1) as scope:
        await sleep_and_log(lib, log, 1, "inside")
    log(look(scope))


@program
async def an_inner_deadline_passes_during_outer_cleanup(lib: Any, log: Log) -> None:
    with lib.move_on_after(1) as outer:
        with lib.move_on_after(2) as inner:
            try:
                await lib.sleep(9)
            finally:
                with lib.CancelScope(shield=True):
                    await lib.sleep(5)
                log((look(outer), look(inner)))
    log((look(outer), look(inner)))


@program
async def an_outer_deadline_passes_during_inner_cleanup(lib: Any, log: Log) -> None:
    with lib.move_on_after(2) as outer:
        with lib.move_on_after(1) as inner:
            try:
                await lib.sleep(9)
            finally:
                with lib.CancelScope(shield=True):
                    await lib.sleep(5)
        log("not reached")
    log((look(outer), look(inner)))


@program
async def a_scope_cancelled_before_it_is_entered(lib: Any, log: Log) -> None:
    scope = lib.CancelScope()
    scope.cancel()
    with scope:
        log("inside")
        await lib.checkpoint()
        log("not reached")
    log(look(scope))


@program
async def a_deadline_that_has_passed_cancels_at_the_first_checkpoint(
    lib: Any, log: Log
) -> None:
    await lib.sleep(5)
    for scope in (lib.move_on_at(3), lib.move_on_after(0), lib.move_on_at(-math.inf)):
        with scope:
            log(("inside", lib.current_effective_deadline(), look(scope)))
            await lib.sleep(0)
            log("not reached")
        log(look(scope))


@program
async def cancel_called_notices_a_deadline_that_has_passed(lib: Any, log: Log) -> None:
    await lib.sleep(5)
    scope = lib.CancelScope(deadline=3)
    log(scope.cancel_called)
    with scope:
        pass
    log(look(scope))


@program
async def a_scope_is_good_for_one_block(lib: Any, log: Log) -> None:
    with lib.CancelScope() as scope:
        log("once")
    with scope:
        log("not reached")


@program
async def a_deadline_can_be_moved(lib: Any, log: Log) -> None:
    async def move(scope: Any, at: float, deadline: float) -> None:
        await lib.sleep(at)
        scope.deadline = deadline
        log(scope.deadline)

    with lib.move_on_after(2) as scope:
        async with lib.open_nursery() as nursery:
            nursery.start_soon(move, scope, 1, 7)
            nursery.start_soon(move, scope, 3, 4)
            await sleep_and_log(lib, log, 9, "inside")
    log(look(scope))


@program
async def a_deadline_can_be_taken_back(lib: Any, log: Log) -> None:
    with lib.move_on_after(2) as scope:
        scope.deadline = math.inf
        await sleep_and_log(lib, log, 9, "inside")
    log(look(scope))


@program
async def a_timeout_has_no_deadline_before_it_is_entered(lib: Any, log: Log) -> None:
    scope = lib.move_on_after(2)
    log("made")
    await lib.sleep(1)
    with scope:
        log(scope.deadline)
    log(lib.move_on_after(2).deadline)


@program
async def a_relative_deadline_counts_from_when_it_is_set(lib: Any, log: Log) -> None:
    scope = lib.CancelScope()
    log((scope.is_relative, scope.relative_deadline))
    scope.relative_deadline = 2
    log((scope.is_relative, scope.relative_deadline))
    await lib.sleep(1)
    with scope:
        log((scope.is_relative, scope.deadline))
        await lib.sleep(0.5)
        log(scope.relative_deadline)
        scope.relative_deadline = 3
        await sleep_and_log(lib, log, 9, "inside")
    log((look(scope), scope.relative_deadline))
    absolute = lib.CancelScope(deadline=9)
    log(absolute.is_relative)
    for change in (lambda: absolute.relative_deadline, lambda: later(absolute, 1)):
        try:
            change()
        except RuntimeError:
            log("refused")
    for seconds in (-1, math.nan):
        try:
            later(lib.CancelScope(), seconds)
        except ValueError:
            log("refused")


def later(scope: Any, seconds: float) -> None:
    scope.relative_deadline = seconds


@program
async def impossible_times_are_refused(lib: Any, log: Log) -> None:
    async def refuse(make: Callable[[], Any]) -> None:
        try:
            with make():
                log("not reached")
        except ValueError:
            log("refused")

    await refuse(lambda: lib.move_on_after(-1))
    await refuse(lambda: lib.move_on_after(math.nan))
    await refuse(lambda: lib.move_on_at(math.nan))
    await refuse(lambda: lib.fail_after(-1))
    await refuse(lambda: lib.fail_at(math.nan))
    await refuse(lambda: lib.CancelScope(deadline=1, relative_deadline=1))
    for seconds in (-1, math.nan):
        try:
            await lib.sleep(seconds)
        except ValueError:
            log("refused to sleep")


@program
async def the_effective_deadline_is_the_nearest_that_counts(lib: Any, log: Log) -> None:
    log(lib.current_effective_deadline())
    with lib.move_on_at(5):
        with lib.move_on_at(9):
            log(lib.current_effective_deadline())
            with lib.CancelScope(shield=True) as shield:
                log(lib.current_effective_deadline())
                shield.deadline = 7
                log(lib.current_effective_deadline())
                shield.cancel()
                log(lib.current_effective_deadline())
        with lib.move_on_at(3):
            log(lib.current_effective_deadline())


@program
async def fail_after_raises_when_it_is_too_slow(lib: Any, log: Log) -> None:
    log("start")
    with lib.fail_after(1):
        await sleep_and_log(lib, log, 2, "inside")


@program
async def fail_after_is_silent_in_time(lib: Any, log: Log) -> None:
    with lib.fail_after(2) as scope:
        await sleep_and_log(lib, log, 1, "inside")
    log(look(scope))


@program
async def fail_at_raises_for_a_time_that_has_passed(lib: Any, log: Log) -> None:
    await lib.sleep(5)
    with lib.fail_at(1):
        log("inside")
        await lib.checkpoint()


@program
async def fail_after_lets_other_errors_through(lib: Any, log: Log) -> None:
    log("start")
    with lib.fail_after(1):
        try:
            await lib.sleep(2)
        finally:
            raise ValueError("cleanup")


@program
async def fail_after_around_a_nursery_raises_its_errors_first(
    lib: Any, log: Log
) -> None:
    async def clean_up_badly() -> None:
        try:
            await lib.sleep_forever()
        finally:
            raise ValueError("cleanup")

    log("start")
    with lib.fail_after(1):
        async with lib.open_nursery() as nursery:
            nursery.start_soon(clean_up_badly)
            nursery.start_soon(lib.sleep_forever)


@program
async def a_too_slow_child_ends_its_siblings(lib: Any, log: Log) -> None:
    async def hurry() -> None:
        with lib.fail_after(1):
            await lib.sleep(5)

    async with lib.open_nursery() as nursery:
        nursery.start_soon(hurry)
        nursery.start_soon(sleep_and_log, lib, log, 5, "sibling")


@program
async def a_scope_keeps_errors_of_others_and_drops_cancelled(
    lib: Any, log: Log
) -> None:
    async def clean_up_badly() -> None:
        try:
            await lib.sleep_forever()
        finally:
            raise ValueError("cleanup")

    async def inner() -> None:
        async with lib.open_nursery() as nursery:
            nursery.start_soon(clean_up_badly)
            nursery.start_soon(lib.sleep_forever)

    with lib.move_on_after(1) as scope:
        try:
            async with lib.open_nursery() as nursery:
                nursery.start_soon(inner)
                nursery.start_soon(lib.sleep_forever)
                nursery.start_soon(sleep_and_log, lib, log, 9, "sibling")
        finally:
            log(look(scope))


@program
async def a_group_without_cancelled_is_not_caught(lib: Any, log: Log) -> None:
    scope = lib.CancelScope()
    try:
        with scope:
            scope.cancel()
            raise ExceptionGroup("mine", [ValueError("a"), KeyError("b")])
    finally:
        log(look(scope))


@program
async def a_plain_error_passes_a_cancelled_scope(lib: Any, log: Log) -> None:
    scope = lib.CancelScope()
    try:
        with scope:
            scope.cancel()
            raise ValueError("a")
    finally:
        log(look(scope))


@program
async def a_task_can_be_cancelled_by_another(lib: Any, log: Log) -> None:
    async def worker(scope: Any) -> None:
        with scope:
            await sleep_and_log(lib, log, 9, "worker")
        log(look(scope))

    scope = lib.CancelScope()
    async with lib.open_nursery() as nursery:
        nursery.start_soon(worker, scope)
        await lib.sleep(1)
        scope.cancel()
        log("asked")


@program
async def a_scope_reaches_all_tasks_below_it(lib: Any, log: Log) -> None:
    async def inner(name: str) -> None:
        async with lib.open_nursery() as nursery:
            for number in range(2):
                nursery.start_soon(sleep_and_log, lib, log, 9, f"{name}{number}")

    with lib.move_on_after(1) as scope:
        async with lib.open_nursery() as nursery:
            nursery.start_soon(inner, "a")
            nursery.start_soon(inner, "b")
            with lib.CancelScope(shield=True):
                await sleep_and_log(lib, log, 3, "shielded")
    log(look(scope))


@program
async def cancelled_cannot_be_made_by_hand(lib: Any, log: Log) -> None:
    for make in (lambda: lib.Cancelled(), lambda: type("C", (lib.Cancelled,), {})):
        try:
            make()
        except TypeError:
            log("refused")
    raise lib.Cancelled


@program
async def leaving_an_outer_scope_first_is_an_error(lib: Any, log: Log) -> None:
    outer, inner = lib.CancelScope(), lib.CancelScope()
    outer.__enter__()
    inner.__enter__()
    log("entered")
    outer.__exit__(None, None, None)


@program
async def leaving_the_scope_of_another_task_is_an_error(lib: Any, log: Log) -> None:
    async def leave(scope: Any) -> None:
        log("leaving")
        scope.__exit__(None, None, None)

    with lib.CancelScope() as scope:
        async with lib.open_nursery() as nursery:
            nursery.start_soon(leave, scope)


@program
async def what_is_inside_a_scope_that_was_left_first_is_cancelled(
    lib: Any, log: Log
) -> None:
    outer = lib.CancelScope()
    outer.__enter__()
    try:
        async with lib.open_nursery() as nursery:
            nursery.start_soon(wait_and_log, lib, log)
            await lib.checkpoint()
            try:
                outer.__exit__(None, None, None)
            except RuntimeError:
                log("refused")
            await lib.sleep(3)
            raise RuntimeError
    except* RuntimeError:
        log("refused")


@program
async def a_nursery_that_the_root_does_not_close_is_an_error(
    lib: Any, log: Log
) -> None:
    nursery = await lib.open_nursery().__aenter__()
    nursery.start_soon(wait_and_log, lib, log)


@program
async def a_nursery_that_is_not_closed_is_an_error(lib: Any, log: Log) -> None:
    async def child() -> None:
        nursery = await lib.open_nursery().__aenter__()
        nursery.start_soon(sleep_and_log, lib, log, 5, "lost")

    async with lib.open_nursery() as nursery:
        nursery.start_soon(child)
        nursery.start_soon(sleep_and_log, lib, log, 5, "sibling")


# ---- checkpoints and races


@program
async def a_cancelled_checkpoint_lets_others_run_first(lib: Any, log: Log) -> None:
    async def cancelled() -> None:
        with lib.CancelScope() as scope:
            scope.cancel()
            log("before")
            await lib.checkpoint()
        log("after")

    async with lib.open_nursery() as nursery:
        nursery.start_soon(cancelled)
        nursery.start_soon(count, lib, log, "other", 5)


@program
async def a_cancelled_sleep_of_no_time_is_a_checkpoint(lib: Any, log: Log) -> None:
    async def cancelled() -> None:
        with lib.CancelScope() as scope:
            scope.cancel()
            await lib.sleep(0)
        log("after")

    async with lib.open_nursery() as nursery:
        nursery.start_soon(cancelled)
        nursery.start_soon(count, lib, log, "other", 5)


@program
async def checkpoint_if_cancelled_does_nothing_otherwise(lib: Any, log: Log) -> None:
    async with lib.open_nursery() as nursery:
        nursery.start_soon(count, lib, log, "other", 3)
        await lib.checkpoint_if_cancelled()
        log("at once")
        with lib.CancelScope() as scope:
            scope.cancel()
            await lib.cancel_shielded_checkpoint()
            log("shielded")
            await lib.checkpoint_if_cancelled()
            log("not reached")


@program
async def a_result_that_came_first_wins(lib: Any, log: Log) -> None:
    event, scope = lib.Event(), lib.CancelScope()

    async def worker() -> None:
        with scope:
            await event.wait()
            log("result")
            await lib.checkpoint()
            log("not reached")
        log(look(scope))

    async with lib.open_nursery() as nursery:
        nursery.start_soon(worker)
        await lib.sleep(1)
        event.set()
        scope.cancel()


@program
async def a_cancellation_that_came_first_wins(lib: Any, log: Log) -> None:
    event, scope = lib.Event(), lib.CancelScope()

    async def worker() -> None:
        with scope:
            await event.wait()
            log("not reached")
        log(look(scope))

    async with lib.open_nursery() as nursery:
        nursery.start_soon(worker)
        await lib.sleep(1)
        scope.cancel()
        event.set()


@program
async def a_sleep_that_ended_is_still_cancelled_in_that_moment(
    lib: Any, log: Log
) -> None:
    inner, outer = lib.CancelScope(), lib.CancelScope()

    async def worker() -> None:
        with outer:
            with inner:  # like the scope in sleep()
                await lib.sleep_forever()
            log("not reached")
        log((look(inner), look(outer)))

    async with lib.open_nursery() as nursery:
        nursery.start_soon(worker)
        await lib.sleep(1)
        inner.cancel()
        outer.cancel()


@program
async def an_error_and_a_timeout_in_one_moment(lib: Any, log: Log) -> None:
    with lib.move_on_after(1) as scope:
        async with lib.open_nursery() as nursery:
            nursery.start_soon(sleep_and_raise, lib, 1, ValueError("late"))
            nursery.start_soon(sleep_and_log, lib, log, 2, "sibling")
    log(look(scope))


@program
async def an_error_while_being_cancelled_replaces_the_cancellation(
    lib: Any, log: Log
) -> None:
    with lib.move_on_after(1) as scope:
        try:
            await lib.sleep(5)
        except lib.Cancelled:
            log("cancelled")
            raise ValueError("instead") from None
    log(look(scope))


@program
async def sleepers_wake_up_in_order_of_time(lib: Any, log: Log) -> None:
    async with lib.open_nursery() as nursery:
        for seconds in (3, 1, 2, 0):
            nursery.start_soon(sleep_and_log, lib, log, seconds, seconds)
    await lib.sleep_until(1)
    log(lib.current_time())
    await lib.sleep_until(4.5)
    log(lib.current_time())


# ---- Nursery.start


async def serve(
    lib: Any, log: Log, before: float, after: float, *, task_status: Any
) -> None:
    await sleep_and_log(lib, log, before, "before")
    task_status.started("value")
    await sleep_and_log(lib, log, after, "after")


@program
async def start_returns_what_the_task_reports(lib: Any, log: Log) -> None:
    async with lib.open_nursery() as nursery:
        log(await nursery.start(serve, lib, log, 1, 2))
    log("closed")


@program
async def start_returns_none_for_an_empty_report(lib: Any, log: Log) -> None:
    async def report(task_status: Any = lib.TASK_STATUS_IGNORED) -> None:
        task_status.started()

    await report()
    async with lib.open_nursery() as nursery:
        log(await nursery.start(report))


@program
async def a_task_that_does_not_report_fails_start(lib: Any, log: Log) -> None:
    async def silent(task_status: Any) -> None:
        log("silent")

    async with lib.open_nursery() as nursery:
        try:
            await nursery.start(silent)
        except RuntimeError:
            log("caught")


@program
async def an_error_before_the_report_comes_out_of_start_as_it_is(
    lib: Any, log: Log
) -> None:
    async def fail(task_status: Any) -> None:
        await lib.sleep(1)
        raise ValueError("early")

    async with lib.open_nursery() as nursery:
        try:
            await nursery.start(fail)
        except ValueError:
            log("caught")


@program
async def a_group_before_the_report_comes_out_of_start_as_it_is(
    lib: Any, log: Log
) -> None:
    async def fail(task_status: Any) -> None:
        async with lib.open_nursery() as inner:
            inner.start_soon(sleep_and_raise, lib, 1, ValueError("early"))

    log("start")
    async with lib.open_nursery() as nursery:
        await nursery.start(fail)


@program
async def an_error_after_the_report_comes_out_of_the_nursery(
    lib: Any, log: Log
) -> None:
    async def fail(task_status: Any) -> None:
        task_status.started()
        await lib.sleep(1)
        raise ValueError("late")

    async with lib.open_nursery() as nursery:
        await nursery.start(fail)
        await sleep_and_log(lib, log, 5, "body")


@program
async def cancelling_start_cancels_the_task(lib: Any, log: Log) -> None:
    async with lib.open_nursery() as nursery:
        with lib.move_on_after(1) as scope:
            await nursery.start(serve, lib, log, 5, 5)
        log(look(scope))


@program
async def a_report_after_start_was_cancelled_is_ignored(lib: Any, log: Log) -> None:
    async def stubborn(task_status: Any) -> None:
        with lib.CancelScope(shield=True):
            await lib.sleep(3)
        task_status.started("late")
        log("reported")
        await lib.checkpoint()
        log("not reached")

    async with lib.open_nursery() as nursery:
        with lib.move_on_after(1) as scope:
            log(await nursery.start(stubborn))
        log(look(scope))


@program
async def a_report_and_the_end_of_a_task_cancelled_in_start(lib: Any, log: Log) -> None:
    async def stubborn(task_status: Any) -> None:
        with lib.CancelScope(shield=True):
            await lib.sleep(3)
        task_status.started("late")
        log("reported")

    async with lib.open_nursery() as nursery:
        with lib.move_on_after(1) as scope:
            log(await nursery.start(stubborn))
        log(look(scope))


@program
async def reporting_twice_is_an_error(lib: Any, log: Log) -> None:
    async def twice(task_status: Any) -> None:
        task_status.started()
        log("once")
        task_status.started()

    async with lib.open_nursery() as nursery:
        await nursery.start(twice)


@program
async def start_in_a_cancelled_nursery_moves_the_task_there(lib: Any, log: Log) -> None:
    async with lib.open_nursery() as nursery:
        nursery.cancel_scope.cancel()
        with lib.CancelScope(shield=True):
            log(await nursery.start(serve, lib, log, 1, 1))
    log(look(nursery.cancel_scope))


@program
async def a_task_that_moves_into_a_cancelled_nursery_is_cancelled_in_its_scopes(
    lib: Any, log: Log
) -> None:
    async def task(task_status: Any) -> None:
        with lib.CancelScope() as scope:
            async with lib.open_nursery() as inner:
                inner.start_soon(sleep_and_log, lib, log, 9, "grandchild")
                await lib.sleep(1)
                task_status.started()
                log("reported")
        log(look(scope))

    async with lib.open_nursery() as nursery:
        nursery.cancel_scope.cancel()
        with lib.CancelScope(shield=True):
            await nursery.start(task)
            await lib.sleep(3)
    log(look(nursery.cancel_scope))


@program
async def a_blocked_task_that_is_moved_into_a_cancelled_nursery_wakes_up(
    lib: Any, log: Log
) -> None:
    statuses: list[Any] = []

    async def task(task_status: Any) -> None:
        statuses.append(task_status)
        await wait_and_log(lib, log)

    async def report_for_it() -> None:
        await lib.sleep(1)
        statuses[0].started()

    async with lib.open_nursery() as outer:
        outer.start_soon(report_for_it)
        async with lib.open_nursery() as nursery:
            nursery.cancel_scope.cancel()
            with lib.CancelScope(shield=True):
                await nursery.start(task)
                log("started")
                await lib.sleep(3)
    log("closed")


@program
async def the_open_scopes_of_a_task_move_with_it(lib: Any, log: Log) -> None:
    async def task(task_status: Any) -> None:
        with lib.move_on_after(5) as scope:
            async with lib.open_nursery() as inner:
                inner.start_soon(sleep_and_log, lib, log, 9, "grandchild")
                await lib.sleep(1)
                task_status.started()
                await lib.sleep(9)
        log(look(scope))
        await sleep_and_log(lib, log, 9, "task")

    async with lib.open_nursery() as nursery:
        with lib.move_on_after(2) as scope:
            await nursery.start(task)
        log(look(scope))
        await lib.sleep(6)
        nursery.cancel_scope.cancel()


@program
async def the_scope_around_start_no_longer_matters_once_it_has_returned(
    lib: Any, log: Log
) -> None:
    async with lib.open_nursery() as nursery:
        with lib.CancelScope() as scope:
            await nursery.start(serve, lib, log, 1, 2)
            scope.cancel()
            await lib.sleep(9)
        log(look(scope))


@program
async def a_nursery_stays_open_while_a_start_is_pending(lib: Any, log: Log) -> None:
    async def starter(nursery: Any) -> None:
        log(await nursery.start(serve, lib, log, 2, 2))

    async with lib.open_nursery() as outer:
        async with lib.open_nursery() as inner:
            outer.start_soon(starter, inner)
            await lib.checkpoint()
        log("inner closed")


@program
async def a_pending_start_that_fails_closes_the_nursery(lib: Any, log: Log) -> None:
    async def fail(task_status: Any) -> None:
        await lib.sleep(2)
        raise ValueError("early")

    async def starter(nursery: Any) -> None:
        try:
            await nursery.start(fail)
        except ValueError:
            log("caught")

    async with lib.open_nursery() as outer:
        async with lib.open_nursery() as inner:
            outer.start_soon(starter, inner)
            await lib.checkpoint()
        log("inner closed")


# ---- Event


@program
async def an_event_wakes_all_who_wait(lib: Any, log: Log) -> None:
    event = lib.Event()

    async def wait() -> None:
        await event.wait()
        log("woken")

    async with lib.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await lib.sleep(1)
        log(event.is_set())
        event.set()
        event.set()
        log(event.is_set())
        await event.wait()
        log("at once")


@program
async def waiting_for_a_set_event_is_a_checkpoint(lib: Any, log: Log) -> None:
    event = lib.Event()
    event.set()
    with lib.CancelScope() as scope:
        scope.cancel()
        await event.wait()
        log("not reached")
    log(look(scope))


@program
async def a_cancelled_waiter_is_not_woken(lib: Any, log: Log) -> None:
    event = lib.Event()
    with lib.move_on_after(1):
        await event.wait()
    event.set()
    await lib.sleep(1)
    log("fine")


@program
async def an_event_is_no_bool(lib: Any, log: Log) -> None:
    log("start")
    bool(lib.Event())


# ---- memory channels


@program
async def values_go_from_hand_to_hand(lib: Any, log: Log) -> None:
    send, receive = lib.open_memory_channel(0)

    async def produce() -> None:
        async with send:
            for number in range(3):
                await send.send(number)
                log(f"sent {number}")

    async with lib.open_nursery() as nursery:
        nursery.start_soon(produce)
        async for number in receive:
            log(f"got {number}")
            await lib.sleep(1)
    log("end")


@program
async def a_buffer_holds_so_many_values(lib: Any, log: Log) -> None:
    send, receive = lib.open_memory_channel(2)
    send.send_nowait(1)
    await send.send(2)
    try:
        send.send_nowait(3)
    except lib.WouldBlock:
        log("full")
    log((receive.receive_nowait(), await receive.receive()))
    receive.receive_nowait()


@program
async def a_blocked_sender_refills_the_buffer_in_order(lib: Any, log: Log) -> None:
    send, receive = lib.open_memory_channel(1)

    async def produce(value: int) -> None:
        await send.send(value)
        log(f"sent {value}")

    async with lib.open_nursery() as nursery:
        for value in range(4):
            nursery.start_soon(produce, value)
        await lib.sleep(1)
        for _ in range(4):
            log(receive.receive_nowait())
        await lib.sleep(1)


@program
async def receivers_are_served_in_order(lib: Any, log: Log) -> None:
    send, receive = lib.open_memory_channel(0)

    async def consume(name: str) -> None:
        log((name, await receive.receive()))

    async with lib.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(consume, name)
        await lib.sleep(1)
        for value in range(3):
            send.send_nowait(value)
        try:
            send.send_nowait(3)
        except lib.WouldBlock:
            log("nobody waits")


@program
async def what_was_sent_can_be_received_after_the_end(lib: Any, log: Log) -> None:
    send, receive = lib.open_memory_channel(5)
    with send:
        send.send_nowait(1)
        send.send_nowait(2)
    async for value in receive:
        log(value)
    try:
        receive.receive_nowait()
    except lib.EndOfChannel:
        log("end")
    await receive.receive()


@program
async def the_end_wakes_those_who_wait(lib: Any, log: Log) -> None:
    send, receive = lib.open_memory_channel(0)

    async def consume(name: str) -> None:
        try:
            await receive.receive()
        except lib.EndOfChannel:
            log(name)

    async with lib.open_nursery() as nursery:
        nursery.start_soon(consume, "a")
        nursery.start_soon(consume, "b")
        await lib.sleep(1)
        send.close()


@program
async def closing_the_receiver_breaks_the_sender(lib: Any, log: Log) -> None:
    send, receive = lib.open_memory_channel(0)

    async def produce() -> None:
        try:
            await send.send(1)
        except lib.BrokenResourceError:
            log("broken")

    async with lib.open_nursery() as nursery:
        nursery.start_soon(produce)
        await lib.sleep(1)
        receive.close()
    await send.send(2)


@program
async def closing_the_receiver_drops_the_buffer(lib: Any, log: Log) -> None:
    class Value:
        pass

    send, receive = lib.open_memory_channel(3)
    value = Value()
    reference = weakref.ref(value)
    send.send_nowait(value)
    del value
    log(reference() is None)
    receive.close()
    log(reference() is None)
    send.send_nowait(2)


@program
async def closing_an_end_fails_those_who_use_it(lib: Any, log: Log) -> None:
    send, receive = lib.open_memory_channel(0)
    sender, receiver = send.clone(), receive.clone()

    async def use(call: Callable[[], Any]) -> None:
        try:
            await call()
        except lib.ClosedResourceError:
            log("closed")

    async with lib.open_nursery() as nursery:
        nursery.start_soon(use, receiver.receive)
        await lib.sleep(1)
        receiver.close()
        await lib.sleep(1)
        nursery.start_soon(use, lambda: sender.send(1))
        await lib.sleep(1)
        sender.close()
        sender.close()
        await lib.sleep(1)
        log("others are open")
        nursery.start_soon(send.send, 2)
        log(await receive.receive())


@program
async def closing_an_end_leaves_the_users_of_its_clones_alone(
    lib: Any, log: Log
) -> None:
    send, receive = lib.open_memory_channel(0)

    async def consume() -> None:
        log(await receive.receive())

    async with lib.open_nursery() as nursery:
        nursery.start_soon(send.send, 1)
        await lib.sleep(1)
        send.clone().close()
        await lib.sleep(1)
        log(receive.receive_nowait())
        nursery.start_soon(consume)
        await lib.sleep(1)
        receive.clone().close()
        await lib.sleep(1)
        send.send_nowait(2)


@program
async def a_closed_end_refuses_everything(lib: Any, log: Log) -> None:
    send, receive = lib.open_memory_channel(1)
    await send.aclose()
    await receive.aclose()
    for call in (
        lambda: send.send_nowait(1),
        send.clone,
        receive.receive_nowait,
        receive.clone,
    ):
        try:
            call()
        except lib.ClosedResourceError:
            log("closed")
    await receive.receive()


@program
async def a_channel_ends_with_the_last_clone(lib: Any, log: Log) -> None:
    send, receive = lib.open_memory_channel(0)

    async def produce(sender: Any, seconds: float) -> None:
        with sender:
            await lib.sleep(seconds)
            await sender.send(seconds)

    async with lib.open_nursery() as nursery:
        with send:
            for seconds in (3, 1, 2):
                nursery.start_soon(produce, send.clone(), seconds)
        async for value in receive:
            log(value)
    log("end")


@program
async def a_cancelled_receive_takes_nothing(lib: Any, log: Log) -> None:
    send, receive = lib.open_memory_channel(0)
    with lib.move_on_after(1) as scope:
        await receive.receive()
    log(look(scope))
    try:
        send.send_nowait(1)
    except lib.WouldBlock:
        log("nobody waits")


@program
async def a_cancelled_send_leaves_nothing(lib: Any, log: Log) -> None:
    send, receive = lib.open_memory_channel(0)
    with lib.move_on_after(1) as scope:
        await send.send(1)
    log(look(scope))
    receive.receive_nowait()


@program
async def in_a_cancelled_scope_nothing_is_sent_or_received(lib: Any, log: Log) -> None:
    send, receive = lib.open_memory_channel(2)
    send.send_nowait("before")
    for call in (lambda: send.send("during"), receive.receive):
        with lib.CancelScope() as scope:
            scope.cancel()
            await call()
        log(look(scope))
    log(receive.receive_nowait())
    receive.receive_nowait()


@program
async def a_value_handed_over_survives_a_cancellation(lib: Any, log: Log) -> None:
    send, receive = lib.open_memory_channel(0)
    scope = lib.CancelScope()

    async def consume() -> None:
        with scope:
            log(await receive.receive())
            await lib.checkpoint()
            log("not reached")
        log(look(scope))

    async with lib.open_nursery() as nursery:
        nursery.start_soon(consume)
        await lib.sleep(1)
        send.send_nowait("value")
        scope.cancel()


@program
async def closing_in_a_cancelled_scope_closes_all_the_same(lib: Any, log: Log) -> None:
    send, receive = lib.open_memory_channel(0)
    with lib.CancelScope() as scope:
        scope.cancel()
        await send.aclose()
        log("not reached")
    log(look(scope))
    receive.receive_nowait()


@program
async def sizes_of_channels_are_checked(lib: Any, log: Log) -> None:
    for size in (-1, 1.5):
        try:
            lib.open_memory_channel(size)
        except (TypeError, ValueError) as error:
            log(type(error).__name__)
    send, receive = lib.open_memory_channel[int](math.inf)
    send.send_nowait(1)
    log(receive.receive_nowait())


@program
async def a_pipeline_of_three_stages(lib: Any, log: Log) -> None:
    async def square(receive: Any, send: Any) -> None:
        with receive, send:
            async for value in receive:
                await lib.sleep(0.5 + 0.01 * value)
                await send.send(value * value)

    first_send, first_receive = lib.open_memory_channel(1)
    last_send, last_receive = lib.open_memory_channel(0)
    async with lib.open_nursery() as nursery:
        with first_receive, last_send:
            for _ in range(2):
                nursery.start_soon(square, first_receive.clone(), last_send.clone())

        async def feed() -> None:
            with first_send:
                for value in range(6):
                    await first_send.send(value)
                    log(f"fed {value}")

        nursery.start_soon(feed)
        async for value in last_receive:
            log(value)


@program
async def a_channel_tells_its_state(lib: Any, log: Log) -> None:
    send, receive = lib.open_memory_channel(1)

    def look_at(end: Any) -> None:
        found = end.statistics()
        log((found.current_buffer_used, found.max_buffer_size))
        log((found.open_send_channels, found.open_receive_channels))
        log((found.tasks_waiting_send, found.tasks_waiting_receive))

    async with lib.open_nursery() as nursery:
        nursery.start_soon(receive.receive)
        await lib.sleep(1)
        look_at(send)
        other = send.clone()
        for number in range(3):
            nursery.start_soon(other.send, number)
        await lib.sleep(1)
        look_at(receive)
        receive.receive_nowait()
        send.close()
        look_at(receive)
        log(receive.receive_nowait())


# ---- limiters and locks


@program
async def a_limiter_lets_in_so_many_in_order(lib: Any, log: Log) -> None:
    limiter = lib.CapacityLimiter(2)

    async def work(name: str, seconds: float) -> None:
        async with limiter:
            await sleep_and_log(lib, log, seconds, name)

    async with lib.open_nursery() as nursery:
        for number, name in enumerate("abcde"):
            nursery.start_soon(work, name, 1 + 0.1 * number)
        await lib.sleep(0.5)
        log((limiter.borrowed_tokens, limiter.available_tokens, limiter.total_tokens))


@program
async def a_cancelled_task_leaves_the_line(lib: Any, log: Log) -> None:
    lock = lib.Lock()

    async def work(name: str, patience: float) -> None:
        with lib.move_on_after(patience) as scope:
            async with lock:
                await sleep_and_log(lib, log, 2, name)
        log((name, look(scope)))

    async with lib.open_nursery() as nursery:
        nursery.start_soon(work, "a", 9)
        nursery.start_soon(work, "b", 1)
        nursery.start_soon(work, "c", 9)
        await lib.sleep(1.5)
        log(lock.locked())
    log(lock.locked())


@program
async def limiters_refuse_misuse(lib: Any, log: Log) -> None:
    for make in (lib.Lock, lambda: lib.CapacityLimiter(1)):
        limiter = make()
        try:
            limiter.release()
        except RuntimeError:
            log("not held")
        limiter.acquire_nowait()
        try:
            limiter.acquire_nowait()
        except RuntimeError:
            log("held already")
        try:
            await limiter.acquire()
        except RuntimeError:
            log("held already")
        async with lib.open_nursery() as nursery:
            nursery.start_soon(try_acquire, lib, log, limiter)
        limiter.release()
    for total in (-1, 1.5):
        try:
            lib.CapacityLimiter(total)
        except (TypeError, ValueError) as error:
            log(type(error).__name__)


@program
async def a_semaphore_lets_in_as_many_as_it_says(lib: Any, log: Log) -> None:
    semaphore = lib.Semaphore(2, max_value=2)

    async def work(name: str, patience: float) -> None:
        with lib.move_on_after(patience) as scope:
            async with semaphore:
                await sleep_and_log(lib, log, 1 + 0.1 * patience, name)
        log((name, look(scope), semaphore.value))

    async with lib.open_nursery() as nursery:
        for name, patience in zip("abcd", (9, 7, 0.3, 5), strict=True):
            nursery.start_soon(work, name, patience)
        await lib.sleep(0.5)
        log(semaphore.value)
    log((semaphore.value, semaphore.max_value))


@program
async def a_semaphore_is_released_by_anybody(lib: Any, log: Log) -> None:
    semaphore = lib.Semaphore(0)
    async with lib.open_nursery() as nursery:
        nursery.start_soon(acquire_twice, lib, log, semaphore)
        await lib.sleep(1)
        semaphore.release()
        await lib.sleep(1)
        semaphore.release()
    semaphore.release()
    await semaphore.acquire()
    log(semaphore.value)


async def acquire_twice(lib: Any, log: Log, semaphore: Any) -> None:
    for number in range(2):
        await semaphore.acquire()
        log(number)


@program
async def semaphores_refuse_misuse(lib: Any, log: Log) -> None:
    for arguments, most in (((-1,), None), ((1.5,), None), ((2,), 1), ((1,), 1.5)):
        try:
            lib.Semaphore(*arguments, max_value=most)
        except (TypeError, ValueError) as error:
            log(type(error).__name__)
    full = lib.Semaphore(1, max_value=1)
    try:
        full.release()
    except ValueError:
        log("released too often")
    full.acquire_nowait()
    await try_acquire(lib, log, full)


async def try_acquire(lib: Any, log: Log, limiter: Any) -> None:
    try:
        limiter.acquire_nowait()
    except lib.WouldBlock:
        log("would block")
