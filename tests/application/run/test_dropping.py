"""Contexts without some of their pages say what contexts say that only hide those tokens."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import trio

from pie_trio.errors import EngineError, GuestFailedError
from pie_trio.inference.fake import FakeEngine
from tests.application.conftest import OpenLauncher, program_of

if TYPE_CHECKING:
    from pie_trio.application.lifecycle.instances import Launcher
    from pie_trio.application.lifecycle.programs import SourceProgram

LIMIT_SECONDS = 120


async def run(launcher: Launcher, program: SourceProgram) -> Any:
    with trio.fail_after(LIMIT_SECONDS):
        return json.loads(await launcher.prepare(program, {}).run())


STEPS = {
    "streamed": "return await c.generate(max_tokens=40, stop_tokens=[]).tokens()",
    "stepwise": "return await c.generate(max_tokens=20, stop_tokens=[], stepwise=True).tokens()",
    "forward": "return [(await c.forward([t], top=4)).token_ids for t in range(20)]",
    "rows": "return [d.token_ids for d in (await c.forward([8, 9], outputs=["
    "Output(range(2), top=4)]))[0].dists]",
    "fork": "return await c.fork().generate(max_tokens=20, stop_tokens=[]).tokens()",
    "export": "c.export('e'); return await Context.from_export('e').generate("
    "max_tokens=20, stop_tokens=[]).tokens()",
    "cut": "c.truncate(95); return await c.generate(max_tokens=20, stop_tokens=[]).tokens()",
    "cut before": "c.truncate(15); return await c.generate(max_tokens=20, stop_tokens=[]"
    ").tokens()",
    "twice": "a = await c.generate(max_tokens=9, stop_tokens=[]).tokens()\n"
    "        await hide(c, 85, 100)\n"
    "        return a, await c.generate(max_tokens=20, stop_tokens=[]).tokens()",
    "while a stream is open": "found = []\n"
    "        async for chunk in c.generate(max_tokens=60, stop_tokens=[]):\n"
    "            found += chunk.token_ids\n"
    "            if len(c) % 8 == 1: await hide(c, 20, len(c) - 12)\n"
    "        return len(found)",
}


@pytest.mark.parametrize("step", STEPS)
async def test_what_is_dropped_is_hidden(open_fake: OpenLauncher, step: str) -> None:
    program = program_of(
        "async def go(is_dropped):\n"
        "    async def hide(c, start, end):\n"
        "        if is_dropped: await c.drop(start, end)\n"
        "        else: c.mask(start, end)\n"
        "    async with Context() as c:\n"
        "        c.append([t % 250 for t in range(100)])\n"
        "        await hide(c, 20, 83)\n"
        "        assert c.num_pages == (6 - 3 * is_dropped), c.num_pages\n"
        f"        {STEPS[step]}\n"
        "one, other = await go(True), await go(False)\n"
        "assert one == other, (one, other)\n"
        "return len(one) if not isinstance(one, int) else one"
    )
    async with open_fake() as launcher:
        assert await run(launcher, program) > 0


async def test_a_text_without_end_takes_the_same_pages(open_fake: OpenLauncher) -> None:
    program = program_of(
        "most = 0\n"
        "async with Context() as ctx:\n"
        "    await ctx.fill('x' * 30)\n"
        "    async for _ in ctx.generate(max_tokens=500, stop_tokens=[], stepwise=True):\n"
        "        if len(ctx) > 16 + 48: await ctx.drop(16, len(ctx) - 48)\n"
        "        most = max(most, ctx.num_pages)\n"
        "    return len(ctx), most"
    )
    async with open_fake() as launcher:
        assert await run(launcher, program) == [531, 5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("await ctx.drop(0, 100)", "tokens up to 100 of a context of 100 cannot be"),
        ("await ctx.drop(50, 40)", "tokens 50 to 40 of a context of 100"),
        ("await ctx.drop(-1, 40)", "start is an int of 0 or more"),
        ("ctx.mask(40, 41, hidden=False)", "cannot be shown: the pages of some were"),
        ("ctx.truncate(40)", "token 39 was dropped"),
    ],
)
async def test_what_cannot_be_done_is_refused_and_changes_nothing(
    open_fake: OpenLauncher, call: str, message: str
) -> None:
    program = program_of(
        "async def go(attempt):\n"
        "    async with Context() as ctx:\n"
        "        ctx.append([t % 250 for t in range(100)])\n"
        "        await ctx.drop(20, 83)\n"
        "        try:\n"
        f"            if attempt: {call}\n"
        "        except (ValueError, BadArgumentError) as error:\n"
        f"            assert {message!r} in str(error), error\n"
        "        else:\n"
        "            assert not attempt\n"
        "        return await ctx.generate(max_tokens=20, stop_tokens=[]).tokens()\n"
        "return await go(True) == await go(False)"
    )
    async with open_fake() as launcher:
        assert await run(launcher, program) is True


async def test_what_would_need_the_dropped_tokens_again_fails(
    open_fake: OpenLauncher,
) -> None:
    program = program_of(
        "async with Context() as ctx:\n"
        "    ctx.append([1] * 50)\n"
        "    await ctx.drop(0, 40)\n"
        "    ctx._roll_back(0)\n"  # as after the loss of an engine
        "    await ctx.forward()"
    )
    async with open_fake() as launcher:
        with pytest.raises(GuestFailedError, match="dropped: fill a new context"):
            await run(launcher, program)


async def test_a_drop_whose_forward_fails_can_be_repeated(
    open_fake: OpenLauncher,
) -> None:
    program = program_of(
        "async with Context() as ctx:\n"
        "    ctx.append([1] * 50)\n"
        "    try: await ctx.drop(0, 40)\n"
        "    except EngineFailedError: pass\n"
        "    else: raise AssertionError\n"
        "    assert ctx.num_pages == 3, ctx.num_pages\n"
        "    await ctx.drop(0, 40)\n"
        "    await ctx.forward()\n"
        "    return ctx.num_pages"
    )
    engine = FakeEngine(failures={0: EngineError("the device burns")})
    async with open_fake(engine=engine) as launcher:
        assert await run(launcher, program) == 2
