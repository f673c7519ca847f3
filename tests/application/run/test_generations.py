"""Generations as streams and step by step, in Wasm and natively: one behaviour."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest
import trio

from pie_trio.errors import EngineError
from pie_trio.inference.fake import FakeEngine, fake_continuation
from tests.application.conftest import OpenLauncher, program_of
from tests.application.run.natively import run_natively

if TYPE_CHECKING:
    from collections.abc import Mapping


LIMIT_SECONDS = 120
Run = Callable[..., Awaitable[Any]]
HELPERS = """
async def drain(generation):
    chunks = [chunk async for chunk in generation]
    return [
        "".join(chunk.text for chunk in chunks),
        [token for chunk in chunks for token in chunk.token_ids],
        generation.finish_reason,
    ]
"""


@pytest.fixture(params=["wasm", "native"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs the body of a program with ``stream(...)``, which makes its generations."""
    open_fake: OpenLauncher = request.getfixturevalue("open_fake")

    async def run_it(body: str, failures: Mapping[int, Exception] | None = None) -> Any:
        program = program_of(HELPERS + body)
        engine = FakeEngine(failures=failures)
        with trio.fail_after(LIMIT_SECONDS):
            if request.param == "native":
                result, _ = await run_natively(engine, program)
                return result
            async with open_fake(engine=engine) as launcher:
                return json.loads(await launcher.prepare(program, {}).run())

    return run_it


@pytest.fixture(params=[False, True], ids=["stream", "stepwise"])
def stepwise(request: pytest.FixtureRequest) -> bool:
    found: bool = request.param
    return found


def context(*body: str) -> str:
    lines = "".join(f"    {line}\n" for text in body for line in text.splitlines())
    return f"async with Context() as ctx:\n    await ctx.fill('x')\n{lines}"


EXPECTED = fake_continuation([256, *b"x"], 40)
ALL = "stop_tokens=[]"


@pytest.mark.parametrize(
    "sampler", ["Greedy()", "TopP(0.9, temperature=0.7, seed=5)", "MinP(0.1, seed=-1)"]
)
async def test_tokens_are_the_same_whoever_runs_the_loop(
    run: Run, sampler: str
) -> None:
    found = await run(
        "found = []\n"
        "for stepwise in (False, True):\n"
        "    async with Context() as ctx:\n"
        "        await ctx.fill('x')\n"
        f"        args = dict(sampler={sampler}, max_tokens=40, {ALL}, stepwise=stepwise)\n"
        "        found.append(await drain(ctx.generate(**args)))\n"
        "        found[-1] += [ctx.token_ids, ctx.num_pages]\n"
        "return found"
    )
    (_, tokens, *rest), (_, others, *others_rest) = found
    assert (tokens, rest) == (others, others_rest)
    if sampler == "Greedy()":
        assert tokens == EXPECTED


async def test_why_it_ends(run: Run, stepwise: bool) -> None:
    options = f"max_tokens=40, stepwise={stepwise}"
    found = await run(
        "found = []\n"
        f"for stop in ([], [{EXPECTED[7]}]):\n"
        "    async with Context() as ctx:\n"
        "        await ctx.fill('x')\n"
        f"        found.append(await drain(ctx.generate(stop_tokens=stop, {options})))\n"
        "        found[-1] += [ctx.token_ids[2:], ctx.num_pages]\n"
        "return found"
    )
    cut = EXPECTED[: EXPECTED.index(EXPECTED[7])]
    assert [entry[1:] for entry in found] == [
        [EXPECTED, "length", EXPECTED, 3],
        [cut, "stop", cut, 1],
    ]


async def test_a_stop_string_is_found_where_it_begins(run: Run, stepwise: bool) -> None:
    text, tokens, reason = await run(
        context(
            f"whole = await ctx.fork().generate(max_tokens=40, {ALL}).text()",
            "stop = next(whole[at:at + 2] for at in range(6, 30)"
            " if '\\ufffd' not in whole[at:at + 2])",
            f"found = ctx.generate(stop=stop, {ALL}, stepwise={stepwise})",
            "text, tokens, reason = await drain(found)",
            "return [text == whole[:whole.index(stop)], tokens, reason]",
        )
    )
    assert text
    assert tokens == EXPECTED[: len(tokens)]
    assert reason == "stop"


async def test_log_probabilities_come_with_their_tokens(run: Run) -> None:
    streamed, stepped = await run(
        "found = []\n"
        "for stepwise in (False, True):\n"
        "    async with Context() as ctx:\n"
        "        await ctx.fill('x')\n"
        f"        chunks = [c async for c in ctx.generate(max_tokens=9, {ALL},"
        " logprobs=True, stepwise=stepwise)]\n"
        "        found.append([p for c in chunks for p in c.logprobs])\n"
        "    assert all(len(c.logprobs) == len(c.token_ids) for c in chunks)\n"
        "return found"
    )
    assert len(streamed) == 9
    assert streamed == pytest.approx(stepped)


async def test_the_most_likely_tokens_come_with_each(run: Run) -> None:
    told, expected, text = await run(
        "async with Context() as ctx, Context() as other:\n"
        "    await ctx.fill('x')\n"
        "    await other.fill('x')\n"
        f"    chunks = [c async for c in ctx.generate(max_tokens=4, {ALL}, top_logprobs=3)]\n"
        "    found = [d for c in chunks for d in c.top_logprobs or ()]\n"
        "    expected = []\n"
        "    for token in [t for c in chunks for t in c.token_ids]:\n"
        "        d = await other.forward(top=3)\n"
        "        expected.append([list(d.token_ids), list(d.probs)])\n"
        "        other.append([token])\n"
        "    assert all(c.logprobs is None for c in chunks)\n"
        "    return [found, expected, ''.join(c.text for c in chunks)]"
    )
    assert len(told) == len(expected) == 4
    for top, (tokens, probs) in zip(told, expected, strict=True):
        assert [token for token, _ in top] == tokens
        assert [math.exp(p) for _, p in top] == pytest.approx(probs)
    assert text.encode() == bytes(t[0][0] for t in told) or "\ufffd" in text


@pytest.mark.parametrize(
    "use",
    [
        "pass",
        "with ctx.fork() as child: assert (await child.generate(max_tokens=4, stop_tokens=[])"
        ".tokens()) == EXPECTED[len(ctx) - 2:][:4]",
        "assert (await ctx.forward()).argmax() == EXPECTED[len(ctx) - 2]",
        "assert (await ctx.sample(Greedy())) == EXPECTED[len(ctx) - 2]",
        "ctx.append([])",
        "ctx.truncate(len(ctx))",
        "with move_on_after(0): await generation.__anext__()",
        "with move_on_after(0.0003): await generation.__anext__()",
    ],
)
async def test_the_context_may_be_used_in_the_middle(
    run: Run, stepwise: bool, use: str
) -> None:
    found = await run(
        context(
            f"EXPECTED = {EXPECTED + fake_continuation([256, *b'x', *EXPECTED], 5)}",
            f"generation = ctx.generate(max_tokens=40, {ALL}, stepwise={stepwise})",
            "while generation.finish_reason is None:",
            "    await generation.__anext__()",
            "    assert ctx.token_ids[2:] == generation.token_ids",
            "    if generation.finish_reason is None:",
            f"        {use}",
            "return [generation.token_ids, ctx.token_ids[2:]]",
        )
    )
    assert found == [EXPECTED] * 2


async def test_what_is_appended_in_the_middle_is_seen(run: Run) -> None:
    streamed, stepped = await run(
        "found = []\n"
        "for stepwise in (False, True):\n"
        "    async with Context() as ctx:\n"
        "        await ctx.fill('x')\n"
        f"        generation = ctx.generate(max_tokens=30, {ALL}, stepwise=stepwise)\n"
        "        async for chunk in generation:\n"
        "            if stepwise and len(generation.token_ids) == cut: ctx.append([7])\n"
        "            elif not stepwise and ctx.token_ids.count(7) == 0:\n"
        "                cut = len(generation.token_ids); ctx.append([7])\n"
        "        found.append(ctx.token_ids)\n"
        "return found"
    )
    assert streamed == stepped


async def test_leaving_the_loop_leaves_what_was_read(run: Run, stepwise: bool) -> None:
    found = await run(
        context(
            f"async for chunk in ctx.generate(max_tokens=40, {ALL}, stepwise={stepwise}):",
            "    if len(ctx) > 9: break",
            "read = ctx.token_ids[2:]",
            f"rest = ctx.generate(max_tokens=40 - len(read), {ALL})",
            "return [read, await rest.tokens()]",
        )
    )
    assert [*found[0], *found[1]] == EXPECTED


@pytest.mark.parametrize("step", [0, 1, 5])
async def test_a_failed_step_is_an_error_that_can_be_repeated(
    run: Run, stepwise: bool, step: int
) -> None:
    found = await run(
        context(
            f"generation = ctx.generate(max_tokens=40, {ALL}, stepwise={stepwise})",
            "try: await generation.tokens()",
            "except EngineFailedError: pass",
            "else: raise AssertionError",
            f"assert len(generation.token_ids) == {step}",
            "return [*generation.token_ids, *await generation.tokens()][:40]",
        ),
        failures={step: EngineError("the device burns")},
    )
    assert found == EXPECTED


async def test_two_tasks_may_share_a_context_that_generates(run: Run) -> None:
    found = await run(
        context(
            f"generation = ctx.generate(max_tokens=40, {ALL})",
            "async def disturb():",
            "    for _ in range(10):",
            "        await checkpoint()",
            "        ctx.append([])",
            "async with open_nursery() as nursery:",
            "    nursery.start_soon(disturb)",
            "    tokens = await generation.tokens()",
            "return tokens",
        )
    )
    assert found == EXPECTED
