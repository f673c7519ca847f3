"""Contexts in Wasm after something went wrong, and numbers that the host cannot take."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import trio

from pie_trio.application.lifecycle.programs import SourceProgram
from pie_trio.config import ControlConfig
from pie_trio.errors import EngineError, GuestFailedError
from pie_trio.inference.fake import FakeEngine, fake_continuation
from tests.application.conftest import OpenLauncher, program_of

if TYPE_CHECKING:
    from pie_trio.application.lifecycle.instances import Launcher

LIMIT_SECONDS = 120
PROMPT = "x" * 150
EXPECTED = fake_continuation([256, *PROMPT.encode()], 5)
SPLIT = ControlConfig(max_forward_tokens=64)
"""Takes the prompt in three forwards, two of which return nothing."""


async def run(launcher: Launcher, program: SourceProgram) -> Any:
    with trio.fail_after(LIMIT_SECONDS):
        return json.loads(await launcher.prepare(program, {}).run())


def recovery(attempt: str) -> SourceProgram:
    """Return a program that attempts something, and then generates as if it had not."""
    return program_of(
        "async with Context() as ctx:\n"
        f"    ctx.append(get_model().tokenize({PROMPT!r}, special=True))\n"
        + "".join(f"    {line}\n" for line in attempt.splitlines())
        + "    return await ctx.generate(max_tokens=5, stop_tokens=[]).tokens()"
    )


@pytest.mark.parametrize("call", ["forward()", "sample(Greedy())", "fill([])"])
@pytest.mark.parametrize("step", [0, 1, 2])
async def test_a_failed_forward_is_repeated(
    open_fake: OpenLauncher, call: str, step: int
) -> None:
    # What fill() leaves pending fails later, where nothing is attempted any more.
    if call == "fill([])" and step == 2:
        return
    program = recovery(
        f"try: await ctx.{call}\nexcept EngineFailedError: pass\n"
        "else: raise AssertionError"
    )
    engine = FakeEngine(failures={step: EngineError("the device burns")})
    async with open_fake(engine=engine, control=SPLIT) as launcher:
        assert await run(launcher, program) == EXPECTED


@pytest.mark.parametrize("call", ["forward()", "sample(Greedy())", "fill([])"])
@pytest.mark.parametrize("delay", [0, 0.001, 0.003, 0.01])
async def test_a_cancelled_forward_is_repeated(
    open_fake: OpenLauncher, call: str, delay: float
) -> None:
    program = recovery(f"with move_on_after({delay}): await ctx.{call}")
    async with open_fake(control=SPLIT) as launcher:
        assert await run(launcher, program) == EXPECTED


async def test_a_generation_can_be_cancelled_and_taken_up_again(
    open_fake: OpenLauncher,
) -> None:
    program = program_of(
        "async with Context() as ctx:\n"
        "    await ctx.fill('x')\n"
        "    for _ in range(100):\n"
        "        with move_on_after(0.0005):\n"
        "            await ctx.generate(max_tokens=1, stop_tokens=[]).tokens()\n"
        "    while len(ctx) < 120: await ctx.generate(max_tokens=1, stop_tokens=[]).tokens()\n"
        "    return ctx.token_ids[2:]"
    )
    async with open_fake() as launcher:
        assert await run(launcher, program) == fake_continuation([256, 120], 118)


FORKED = (
    "root = Context()\n"
    f"await root.fill({PROMPT!r})\n"
    "child, other = root.fork(), root.fork()\n"
    "{attempt}\n"
    "results = []\n"
    "async def go(ctx):\n"
    "    results.append(await ctx.generate(max_tokens=5, stop_tokens=[]).tokens())\n"
    "async with open_nursery() as nursery:\n"
    "    nursery.start_soon(go, child)\n"
    "    nursery.start_soon(go, other)\n"
    "child.close(); other.close(); root.close()\n"
    "return results"
)


@pytest.mark.parametrize(
    "attempt",
    [
        "root.close()",
        "with move_on_after(0): await root.forward()",
        "with move_on_after(0): await child.forward()",
    ],
)
async def test_forks_do_not_lose_what_their_parent_had_sent(
    open_fake: OpenLauncher, attempt: str
) -> None:
    async with open_fake(control=SPLIT) as launcher:
        program = program_of(FORKED.format(attempt=attempt))
        assert await run(launcher, program) == [EXPECTED] * 2


@pytest.mark.parametrize("step", [2, 3])  # what fork() sends, and the forward itself
async def test_a_batch_that_fails_for_one_fork_is_repeated_by_the_other(
    open_fake: OpenLauncher, step: int
) -> None:
    attempt = "try: await child.forward()\nexcept EngineFailedError: pass"
    engine = FakeEngine(failures={step: EngineError("the device burns")})
    async with open_fake(engine=engine, control=SPLIT) as launcher:
        program = program_of(FORKED.format(attempt=attempt))
        assert await run(launcher, program) == [EXPECTED] * 2


async def test_a_fork_of_a_context_whose_forward_is_under_way_can_be_repeated(
    open_fake: OpenLauncher,
) -> None:
    program = program_of(
        "root = Context()\n"
        "await root.fill('xy')\n"
        "async def fail():\n"
        "    try: await root.forward()\n"
        "    except EngineFailedError: pass\n"
        "async with open_nursery() as nursery:\n"
        "    nursery.start_soon(fail)\n"
        "    await checkpoint()\n"
        "    child = root.fork()\n"
        "    child.append([122])\n"
        "    try: await child.forward()\n"
        "    except CommandCancelledError: pass\n"
        "    else: raise AssertionError\n"
        "tokens = await child.generate(max_tokens=5, stop_tokens=[]).tokens()\n"
        "child.close(); root.close()\n"
        "return tokens"
    )
    engine = FakeEngine(failures={0: EngineError("the device burns")})
    async with open_fake(engine=engine) as launcher:
        assert await run(launcher, program) == fake_continuation([256, *b"xyz"], 5)


async def test_with_nothing_pending_the_last_token_is_run_again(
    open_fake: OpenLauncher,
) -> None:
    program = program_of(
        "async with Context() as ctx:\n"
        "    await ctx.fill('x')\n"
        "    tokens = [await ctx.sample(Greedy()) for _ in range(3)]\n"
        "    tokens.append((await ctx.forward()).argmax())\n"
        "    stopped = ctx.generate(stop_tokens=[tokens[0]])\n"
        "    assert await stopped.tokens() == []\n"
        "    with ctx.fork() as child: tokens.append(await child.sample(Greedy()))\n"
        "    return tokens + await ctx.generate(max_tokens=2, stop_tokens=[]).tokens()"
    )
    expected = fake_continuation([256, *b"x"], 2)
    async with open_fake() as launcher:
        assert await run(launcher, program) == [expected[0]] * 5 + expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("ctx.append('b')", "ints from 0 to 257, got 'b' (str)"),
        ("ctx.append(['b'])", "ints from 0 to 257, got 'b' (str)"),
        ("ctx.append(3)", "ints from 0 to 257, got 3 (int)"),
        ("ctx.append([-1])", "got -1 (int)"),
        ("ctx.append([2**40])", "not below 258"),
        ("await ctx.fill([1.5])", "got 1.5 (float)"),
        ("await ctx.forward([True])", "got True (bool)"),
        ("await ctx.forward([1], top=-1)", "top is an int from 0"),
        ("await ctx.forward([1], top=2**40)", "top is an int from 0"),
        ("ctx.generate(max_tokens=-1)", "max_tokens is an int of 0 or more, got -1"),
        ("ctx.generate(max_tokens='9')", "max_tokens is an int of 0 or more, got '9'"),
        ("ctx.truncate(-1)", "length is an int of 0 or more"),
        ("ctx.truncate('1')", "length is an int of 0 or more"),
        ("ctx.model.detokenize([-1])", "got -1 (int)"),
        ("ctx.model.detokenize([2**70])", "not below 258"),
        ("Sampler(temperature=float('nan'))", "temperature is a number from 0"),
        ("Sampler(temperature='hot')", "got 'hot' (str)"),
        ("TopK(-1)", "top_k is an int from 0"),
        ("TopK(2**40)", "top_k is an int from 0"),
        ("TopP(0)", "top_p is a number above 0"),
        ("MinP(1.5)", "min_p is a number from 0 to 1, got 1.5"),
        ("Sampler(seed='x')", "seed is an int or None"),
    ],
)
async def test_a_number_that_does_not_fit_is_an_error_that_names_it(
    open_fake: OpenLauncher, call: str, message: str
) -> None:
    program = program_of(
        "async with Context() as ctx:\n"
        f"    try: {call}\n"
        "    except BadArgumentError as error: return str(error)"
    )
    async with open_fake() as launcher:
        assert message in await run(launcher, program)


async def test_an_unknown_level_and_a_lone_surrogate(open_fake: OpenLauncher) -> None:
    program = program_of(
        "await send('a\\ud800b')\n"
        "try: log('x', level='bad')\n"
        "except ValueError as error: return str(error)"
    )
    expected = "level is one of debug, info, warning, error, got 'bad'"
    async with open_fake() as launcher:
        instance = launcher.prepare(program, {})
        assert json.loads(await instance.run()) == expected
        assert await instance.session.outbox.take() == ["a?b"]


@pytest.mark.parametrize(
    ("module", "message"),
    [("asyncio", "inferlet_py has open_nursery"), ("numpy", "not in the sandbox")],
)
async def test_a_module_that_is_missing_comes_with_a_hint(
    open_fake: OpenLauncher, module: str, message: str
) -> None:
    async with open_fake() as launcher:
        with pytest.raises(GuestFailedError, match=message) as failure:
            await run(launcher, program_of(f"import {module}"))
    assert message in failure.value.traceback


async def test_a_program_that_is_not_asynchronous_says_what_to_write(
    open_fake: OpenLauncher,
) -> None:
    text = "from inferlet_py import inferlet\n@inferlet\ndef main(): ..."
    async with open_fake() as launcher:
        with pytest.raises(GuestFailedError, match="write `async def main`"):
            await run(launcher, SourceProgram("p", "app.py", {"app.py": text}, text))


async def test_a_forward_returns_several_rows_which_single_steps_return_too(
    open_fake: OpenLauncher,
) -> None:
    program = program_of(
        "from inferlet_py import Output\n"
        "async with Context() as ctx, Context() as other:\n"
        f"    tokens = get_model().tokenize({PROMPT[:90]!r} + 'abc', special=True)\n"
        "    await ctx.fill(tokens[:50])\n"  # pending: they come before the rows
        "    sampled, listed = await ctx.forward(\n"
        "        tokens[50:], outputs=[Output(sampler=Greedy()), Output(range(44), top=2)]\n"
        "    )\n"
        "    other.append(tokens[:50])\n"
        "    each = [await other.forward([token], top=2) for token in tokens[50:]]\n"
        "    assert len(each) == 44 and ctx.token_ids == other.token_ids\n"
        "    assert [d.token_ids for d in listed.dists] == [d.token_ids for d in each]\n"
        "    assert list(sampled.tokens) == [each[-1].argmax()]\n"
        "    (again,) = await ctx.forward(outputs=[Output([0], Greedy())])\n"
        "    assert again.tokens == sampled.tokens and len(ctx) == len(tokens)\n"
        "    return await ctx.generate(max_tokens=5, stop_tokens=[]).tokens()"
    )
    async with open_fake(control=SPLIT) as launcher:
        tokens = [256, *(PROMPT[:90] + "abc").encode()]
        assert await run(launcher, program) == fake_continuation(tokens, 5)


@pytest.mark.parametrize("step", [0, 1, 2])
async def test_rows_whose_forward_failed_are_pending(
    open_fake: OpenLauncher, step: int
) -> None:
    program = recovery(
        "from inferlet_py import Output\n"
        "try: await ctx.forward([97], outputs=[Output([0], top=1)])\n"
        "except EngineFailedError: ctx.truncate(len(ctx) - 1)\n"
        "else: raise AssertionError"
    )
    engine = FakeEngine(failures={step: EngineError("the device burns")})
    async with open_fake(engine=engine, control=SPLIT) as launcher:
        assert await run(launcher, program) == EXPECTED


@pytest.mark.parametrize(
    ("count", "row", "message"),
    [
        (3, 3, "there is no row 3 of 3 tokens"),
        (0, 1, "there is no row 1 of 1 tokens"),
        (70, 5, "row 5 of 70 tokens is not among the last 64, which"),
    ],
)
async def test_rows_that_a_forward_cannot_have_are_refused_before_anything_is_appended(
    open_fake: OpenLauncher, count: int, row: int, message: str
) -> None:
    program = recovery(
        "from inferlet_py import Output, BadArgumentError\n"
        f"try: await ctx.forward([97] * {count}, outputs=[Output([{row}], top=1)])\n"
        f"except BadArgumentError as error: assert {message!r} in str(error), error\n"
        "else: raise AssertionError"
    )
    async with open_fake(control=SPLIT) as launcher:
        assert await run(launcher, program) == EXPECTED


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("generate(sampler=Greedy)", "a sampler is made by a call, as Greedy() or"),
        ("generate(sampler='greedy')", "got 'greedy' (str)"),
        ("sample('greedy')", "got 'greedy' (str)"),
        ("generate(stop=3)", "stop is a text or a list of texts, got 3 (int)"),
        ("generate(stop=['a', 3])", "got ['a', 3] (list)"),
    ],
)
async def test_what_is_no_sampler_and_no_text_is_named(
    open_fake: OpenLauncher, call: str, message: str
) -> None:
    program = recovery(
        "from inferlet_py import BadArgumentError\n"
        "try:\n"
        f"    found = ctx.{call}\n"
        "    await (found if call_is_awaited else found.text())\n"
        f"except BadArgumentError as error: assert {message!r} in str(error), error\n"
        "else: raise AssertionError".replace(
            "call_is_awaited", str(call.startswith("sample"))
        )
    )
    async with open_fake(control=SPLIT) as launcher:
        assert await run(launcher, program) == EXPECTED


@pytest.mark.parametrize(
    "attempt",
    [
        "numbers = [p.number for p in queue.alloc_kvpages(2)]\n"
        "    await ctx.forward([1] * 20)",
        "pages = queue.alloc_kvpages(2)\n"
        "    numbers = [p.number for p in pages]\n"
        "    await queue.forward_text([1], pages=pages)",
    ],
)
async def test_a_command_that_fails_names_its_queue_and_pages(
    open_fake: OpenLauncher, attempt: str
) -> None:
    is_context = "ctx" in attempt
    program = program_of(
        "ctx, queue = Context(), Queue()\n"
        "try:\n"
        f"    {attempt}\n"
        "except EngineFailedError as error:\n"
        f"    number = {'ctx.model.queue' if is_context else 'queue.number'}\n"
        f"    pages = {'ctx._pages' if is_context else 'numbers'}\n"
        "    found = error.call, error.queue, error.pages\n"
        "    assert found == ('take_forward', number, tuple(pages)), found\n"
        "    return len(error.pages)"
    )
    engine = FakeEngine(failures={0: EngineError("the device burns")})
    async with open_fake(engine=engine) as launcher:
        assert await run(launcher, program) == 2
