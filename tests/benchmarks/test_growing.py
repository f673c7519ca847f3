"""A number that doubles until something gives."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from benchmarks._growing import COST, MEMORY, Bounds, GaveError, grow
from pie_trio.errors import LimitError

if TYPE_CHECKING:
    from trio.testing import MockClock

BOUNDS = Bounds(most=64, times=4.0, megabytes=100.0, seconds=10.0)


async def steady(_: int) -> dict[str, float]:
    return {COST: 1.0, MEMORY: 1.0}


async def test_nothing_gives_up_to_the_largest_number() -> None:
    found = await grow(steady, replace(BOUNDS, most=20))
    assert list(found.figures) == [1, 2, 4, 8, 16]
    assert found.gave == "nothing up to 16"


async def test_the_cost_gives_beside_the_least_so_far() -> None:
    costs = {1: 8.0, 2: 2.0, 4: 8.0, 8: 9.0}

    async def probe(number: int) -> dict[str, float]:
        return {COST: costs[number], MEMORY: 1.0}

    found = await grow(probe, BOUNDS)
    assert found.gave == "at 8 the cost is 4.5 times the least"
    assert 8 in found.figures, "what was measured is kept"


async def test_memory_gives() -> None:
    async def probe(number: int) -> dict[str, float]:
        return {COST: 1.0, MEMORY: 30.0 * number}

    assert (await grow(probe, BOUNDS)).gave == "at 4 it takes more than 100 MB"


async def test_a_limit_that_refuses_says_which() -> None:
    async def probe(number: int) -> dict[str, float]:
        if number > 2:
            async with trio.open_nursery():
                raise LimitError("only 2 may be open")
        return await steady(number)

    found = await grow(probe, BOUNDS)
    assert found.gave == "at 4: only 2 may be open"
    assert list(found.figures) == [1, 2]


async def test_so_does_a_server() -> None:
    async def probe(_: int) -> dict[str, float]:
        raise GaveError("HTTP/1.1 429")

    assert (await grow(probe, BOUNDS)).gave == "at 1: HTTP/1.1 429"


async def test_what_takes_too_long_is_given_up(autojump_clock: MockClock) -> None:
    async def probe(number: int) -> dict[str, float]:
        await trio.sleep(number * 4)
        return await steady(number)

    found = await grow(probe, BOUNDS)
    assert found.gave == "at 4 it took longer than 10 s"
    assert trio.current_time() == autojump_clock.current_time()
