"""Branches that run at once, and what comes of them."""

from __future__ import annotations

from typing import Any, cast

import pytest

from inferlet_py import Event, current_time, gather, move_on_after, sleep, sleep_forever
from tests.inferlet_py.scripted_host import ScriptedHost, run


async def later(value: str, seconds: float) -> str:
    await sleep(seconds)
    return value


def test_results_come_in_the_order_of_the_branches_after_the_slowest() -> None:
    async def program() -> Any:
        found = await gather([later("a", 3), later("b", 1), later("c", 2)])
        return [found, current_time()]

    assert run(ScriptedHost(), program) == [["a", "b", "c"], 3]


def test_branches_may_wait_for_each_other() -> None:
    async def program() -> Any:
        event = Event()

        async def wait() -> str:
            await event.wait()
            return "waited"

        async def tell() -> str:
            event.set()
            return "told"

        return await gather(branch() for branch in (wait, tell))

    assert run(ScriptedHost(), program) == ["waited", "told"]


def test_what_cannot_be_iterated_is_refused_outside_of_any_group() -> None:
    async def program() -> Any:
        with pytest.raises(TypeError, match="'int' object is not iterable"):
            await gather(cast("Any", 3))

    run(ScriptedHost(), program)


def test_nothing_gathers_nothing() -> None:
    async def program() -> Any:
        return await gather([])

    assert run(ScriptedHost(), program) == []


def test_a_failure_cancels_the_others_and_is_raised_in_a_group() -> None:
    ended: list[str] = []

    async def wait() -> None:
        try:
            await sleep_forever()
        finally:
            ended.append("cancelled")

    async def fail() -> None:
        raise ValueError("one")

    async def program() -> Any:
        with pytest.raises(ExceptionGroup) as caught:
            await gather([wait(), fail(), wait()])
        return [str(error) for error in caught.value.exceptions]

    assert run(ScriptedHost(), program) == ["one"]
    assert ended == ["cancelled", "cancelled"]


def test_whoever_waits_can_give_up() -> None:
    async def program() -> Any:
        with move_on_after(2) as scope:
            await gather([later("a", 1), later("b", 9)])
        return [scope.cancelled_caught, current_time()]

    assert run(ScriptedHost(), program) == [True, 2]
