"""Conditions that end a generation, alone and together."""

from __future__ import annotations

from typing import Any

import pytest

from inferlet_py import (
    Context,
    StopCondition,
    after_lines,
    after_seconds,
    after_tokens,
    at_pattern,
    sleep,
    until,
)
from tests.inferlet_py.scripted_host import ScriptedHost, run

REPLY = "one\ntwo\nthree 3\nfour"


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (after_tokens(5), REPLY[:6]),
        (after_lines(2), REPLY[:8]),
        (at_pattern(r"\d"), REPLY[:16]),
        (at_pattern("x") | after_lines(1), REPLY[:4]),
        (after_tokens(3) & after_lines(2), REPLY[:8]),
        (~after_tokens(0), REPLY),
        (~after_tokens(5), REPLY[:2]),
    ],
)
def test_a_generation_ends_with_the_piece_that_meets_the_condition(
    condition: StopCondition, expected: str
) -> None:
    async def program() -> Any:
        async with Context() as ctx:
            await ctx.fill("x")
            going = until(ctx.generate(), condition)
            text = await going.text()
            return [text, ctx.text()[1:], going.is_met]

    text, held, is_met = run(ScriptedHost(REPLY, chunk_size=2), program)
    assert text == held == expected
    assert is_met == (expected != REPLY)


def test_time_counts_from_the_first_piece() -> None:
    class Slow:
        left = 9

        def __aiter__(self) -> Slow:
            return self

        async def __anext__(self) -> str:
            await sleep(1)
            return "x"

    async def program() -> str:
        await sleep(10)
        return await until(Slow(), after_seconds(3)).text()

    assert run(ScriptedHost(), program) == "xxx"
