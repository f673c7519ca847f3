"""Instances in Wasm: results, failures, limits, cancellation; everything is given back."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio

from pie_trio.application.lifecycle.programs import SourceProgram
from pie_trio.config import ControlConfig
from pie_trio.errors import (
    BadArgumentError,
    EngineError,
    GuestFailedError,
    TimedOutError,
)
from pie_trio.inference.fake import FakeEngine, fake_continuation
from tests.application.conftest import OpenLauncher, program_of

if TYPE_CHECKING:
    from pie_trio.application.lifecycle.instances import Instance, Launcher
    from pie_trio.control.outbox import Message

LIMIT_SECONDS = 120
# However slow the machine: guests are not preempted, and the batcher waits for those who are
# about to submit.
PATIENT = {
    "control": ControlConfig(policy=f"rendezvous:0.5,{LIMIT_SECONDS}"),
    "slice_ticks": 10**6,
}


async def run(launcher: Launcher, program: SourceProgram, **arguments: Any) -> Any:
    with trio.fail_after(LIMIT_SECONDS):
        return json.loads(await launcher.prepare(program, arguments).run())


async def messages_of(instance: Instance) -> list[Message]:
    """Run an instance and return what it sent."""
    taken: list[Message] = []

    async def drain() -> None:
        while messages := await instance.session.outbox.take():
            taken.extend(messages)

    with trio.fail_after(LIMIT_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain)
            await instance.run()
    return taken


GENERATE = program_of(
    "async with Context() as ctx:\n"
    "    await ctx.fill(prompt)\n"
    "    return await ctx.generate(max_tokens=count, stop_tokens=[]).tokens()",
    parameters="prompt: str, count: int = 20",
)


async def test_a_program_generates_what_the_model_says(open_fake: OpenLauncher) -> None:
    async with open_fake() as launcher:
        tokens = await run(launcher, GENERATE, prompt="Once upon a time")
    assert tokens == fake_continuation([256, *b"Once upon a time"], 20)


async def test_many_programs_share_batches_and_get_their_own_tokens(
    open_fake: OpenLauncher,
) -> None:
    engine = FakeEngine()
    prompts = [f"prompt number {i}" * (i + 1) for i in range(8)]
    results: dict[str, list[int]] = {}

    async def one(prompt: str) -> None:
        results[prompt] = await run(launcher, GENERATE, prompt=prompt)

    async with open_fake(engine=engine, **PATIENT) as launcher:
        await launcher.compile(GENERATE)
        async with trio.open_nursery() as nursery:
            for prompt in prompts:
                nursery.start_soon(one, prompt)
    for prompt in prompts:
        assert results[prompt] == fake_continuation([256, *prompt.encode()], 20)
    assert max(engine.batch_sizes) == 8


async def test_branches_of_one_program_share_batches(open_fake: OpenLauncher) -> None:
    engine = FakeEngine()
    program = program_of(
        "results = []\n"
        "async with Context() as root:\n"
        "    await root.fill('a common beginning')\n"
        "    async def branch(text):\n"
        "        async with root.fork() as ctx:\n"
        "            await ctx.fill(text)\n"
        "            results.append([text, await ctx.generate(max_tokens=10, stop_tokens=[]).tokens()])\n"
        "    async with open_nursery() as nursery:\n"
        "        for text in ['x', 'yy', 'zzz', 'wwww']:\n"
        "            nursery.start_soon(branch, text)\n"
        "return results"
    )
    async with open_fake(engine=engine, **PATIENT) as launcher:
        results = await run(launcher, program)
    for text, tokens in results:
        prompt = [256, *f"a common beginning{text}".encode()]
        assert tokens == fake_continuation(prompt, 10)
    # The common beginning once, then ten steps of four branches each.
    assert engine.batch_sizes == [1] + [4] * 10


async def test_messages_arrive_in_order_and_bytes_stay_bytes(
    open_fake: OpenLauncher,
) -> None:
    program = program_of(
        "for i in range(3): await send(str(i))\nawait send(b'\\x00\\xff')"
    )
    async with open_fake() as launcher:
        assert await messages_of(launcher.prepare(program, {})) == [
            "0",
            "1",
            "2",
            b"\x00\xff",
        ]


async def test_a_program_that_sends_more_than_fits_waits_and_loses_nothing(
    open_fake: OpenLauncher,
) -> None:
    program = program_of("for i in range(50): await send(str(i))")
    async with open_fake(max_unread=4) as launcher:
        taken = await messages_of(launcher.prepare(program, {}))
    assert taken == [str(i) for i in range(50)]


async def test_a_failure_shows_the_authors_own_lines(open_fake: OpenLauncher) -> None:
    helper = "def divide(a, b):\n    return a / b\n"
    entry = "from inferlet_py import inferlet\nfrom lib.maths import divide\n\n@inferlet\nasync def main():\n    return divide(1, 0)\n"
    modules = {"app.py": entry, "lib/maths.py": helper}
    async with open_fake() as launcher:
        with pytest.raises(GuestFailedError) as failure:
            await run(launcher, SourceProgram("p", "app.py", modules, "d"))
    assert failure.value.kind == "ZeroDivisionError"
    assert [
        line for line in failure.value.traceback.splitlines() if "File" in line
    ] == [
        '  File "app.py", line 6, in main',
        '  File "lib/maths.py", line 2, in divide',
    ]
    assert "    return a / b" in failure.value.traceback


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('no')", "ValueError: no"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("return {1}", "JSON cannot carry"),
        ("await Event().wait()", "all tasks are blocked"),
        ("def f(): return f()\nf()", "RecursionError"),
        ("x = []\nwhile True: x.append(bytearray(10 << 20))", "MemoryError"),
        ("async with Context('gpt') as c: pass", "there is no model 'gpt'"),
        ("async with Context() as c: await c.forward()", "there is nothing to run"),
        ("async with Context() as c: await c.forward([999])", "not below 258"),
    ],
)
async def test_every_failure_is_a_message(
    open_fake: OpenLauncher, body: str, message: str
) -> None:
    async with open_fake() as launcher:
        with pytest.raises(GuestFailedError) as failure:
            await run(launcher, program_of(body))
    assert message in f"{failure.value}\n{failure.value.traceback}"


async def test_a_failure_in_a_branch_is_named_without_its_nursery(
    open_fake: OpenLauncher,
) -> None:
    body = (
        "async def branch(): raise KeyError('x')\n"
        "async with open_nursery() as outer, open_nursery() as inner:\n"
        "    inner.start_soon(branch)"
    )
    async with open_fake() as launcher:
        with pytest.raises(GuestFailedError) as failure:
            await run(launcher, program_of(body))
    assert (failure.value.kind, str(failure.value)) == ("KeyError", "KeyError: 'x'")
    assert "ExceptionGroup" in failure.value.traceback, "which shows all of it"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("async def main(:", "SyntaxError"),
        ("x = 1", "has no inferlet"),
        (
            "from inferlet_py import inferlet\n@inferlet\nasync def a(): ...\n@inferlet\nasync def b(): ...",
            "2 inferlets",
        ),
        ("1 / 0", "ZeroDivisionError"),
        ("import nothing_like_it", "ModuleNotFoundError"),
    ],
)
async def test_a_program_that_cannot_be_loaded_says_why(
    open_fake: OpenLauncher, text: str, message: str
) -> None:
    async with open_fake() as launcher:
        with pytest.raises(GuestFailedError) as failure:
            await run(launcher, SourceProgram("p", "app.py", {"app.py": text}, text))
    assert message in failure.value.traceback


async def test_arguments_are_checked_against_the_signature(
    open_fake: OpenLauncher,
) -> None:
    async with open_fake() as launcher:
        with pytest.raises(GuestFailedError, match="argument 'count': expected int"):
            await run(launcher, GENERATE, prompt="x", count="many")
        with pytest.raises(GuestFailedError, match="argument 'prompt' is missing"):
            await run(launcher, GENERATE)
        with pytest.raises(GuestFailedError, match="there is no argument 'promt'"):
            await run(launcher, GENERATE, promt="x")
        with pytest.raises(BadArgumentError, match="JSON"):
            launcher.prepare(GENERATE, {"prompt": object()})


async def test_a_program_describes_itself(open_fake: OpenLauncher) -> None:
    async with open_fake() as launcher:
        description = await launcher.prepare(GENERATE, {}).describe()
    assert description["arguments"] == {
        "type": "object",
        "properties": {
            "prompt": {"type": "string"},
            "count": {"type": "integer", "default": 20},
        },
        "required": ["prompt"],
        "additionalProperties": False,
    }


async def test_compiling_ahead_changes_nothing_but_finds_syntax_errors(
    open_fake: OpenLauncher,
) -> None:
    async with open_fake() as launcher:
        await launcher.compile(GENERATE)
        tokens = await run(launcher, GENERATE, prompt="x", count=3)
        assert tokens == fake_continuation([256, *b"x"], 3)
        bad = SourceProgram("bad", "app.py", {"app.py": "x ="}, "bad")
        with pytest.raises(GuestFailedError, match="invalid syntax"):
            await launcher.compile(bad)


async def test_an_endless_loop_is_ended_by_its_time_limit(
    open_fake: OpenLauncher,
) -> None:
    async with open_fake(wall_seconds=0.2) as launcher:
        with pytest.raises(TimedOutError, match="its limit"):
            await run(launcher, program_of("while True: pass"))


async def test_an_endless_loop_does_not_stop_the_tokens_of_another(
    open_fake: OpenLauncher,
) -> None:
    spins = trio.Event()
    program = program_of("log('spins')\nwhile True: pass")
    async with open_fake() as launcher, trio.open_nursery() as nursery:
        spinner = launcher.prepare(program, {}, on_log=lambda _: spins.set())
        nursery.start_soon(spinner.run)
        await spins.wait()
        tokens = await run(launcher, GENERATE, prompt="x", count=30)
        assert tokens == fake_continuation([256, *b"x"], 30)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "body", ["while True: pass", "await sleep(1e6)", "import time; time.sleep(1e6)"]
)
async def test_cancelling_drops_a_guest_wherever_it_stands(
    open_fake: OpenLauncher, body: str
) -> None:
    hold = program_of(
        "async with Context() as ctx:\n"
        "    await ctx.fill('x' * 40)\n"
        "    await ctx.forward()\n"
        "    log('here')\n"
        f"    {body}"
    )
    async with open_fake() as launcher:
        with trio.fail_after(LIMIT_SECONDS), trio.CancelScope() as scope:
            await launcher.prepare(hold, {}, on_log=lambda _: scope.cancel()).run()
        assert scope.cancelled_caught
        assert launcher.num_running == 0


async def test_cancelling_at_any_moment_gives_everything_back(
    open_fake: OpenLauncher,
) -> None:
    async with open_fake() as launcher:
        await launcher.compile(GENERATE)
        for milliseconds in range(0, 40, 2):
            with trio.move_on_after(milliseconds / 1000):
                await launcher.prepare(
                    GENERATE, {"prompt": "y" * 30, "count": 500}
                ).run()
            (model,) = launcher.models.values()
            model.pool.check()
            assert model.pool.num_free == model.pool.num_pages


async def test_a_failing_batch_fails_its_programs_and_no_others(
    open_fake: OpenLauncher,
) -> None:
    engine = FakeEngine(failures={2: EngineError("the device burns")})
    async with open_fake(engine=engine) as launcher:
        with pytest.raises(GuestFailedError, match="the device burns") as failure:
            await run(launcher, GENERATE, prompt="x")
        assert failure.value.kind == "EngineFailedError"
        tokens = await run(launcher, GENERATE, prompt="x")
    assert tokens == fake_continuation([256, *b"x"], 20)


async def test_out_of_pages_is_an_error_of_that_program(
    open_fake: OpenLauncher,
) -> None:
    async with open_fake(engine=FakeEngine(num_pages=4)) as launcher:
        with pytest.raises(GuestFailedError, match="KV pages") as failure:
            await run(launcher, GENERATE, prompt="x" * 100)
        assert failure.value.kind == "OutOfPagesError"
        assert len(await run(launcher, GENERATE, prompt="x")) == 20


async def test_a_guest_made_ahead_of_time_runs_the_same(
    open_fake: OpenLauncher,
) -> None:
    async with open_fake(num_warm=2) as launcher:
        for _ in range(4):
            tokens = await run(launcher, GENERATE, prompt="x", count=5)
            assert tokens == fake_continuation([256, *b"x"], 5)


async def test_a_program_lives_in_an_interpreter_of_its_own(
    open_fake: OpenLauncher,
) -> None:
    program = program_of(
        "import math\nseen = hasattr(math, 'mine')\nmath.mine = 1\nreturn seen"
    )
    async with open_fake(num_warm=1) as launcher:
        assert [await run(launcher, program) for _ in range(3)] == [False] * 3


async def test_a_long_prompt_is_split_into_several_forwards(
    open_fake: OpenLauncher,
) -> None:
    engine = FakeEngine()
    control = ControlConfig(max_forward_tokens=64)
    async with open_fake(engine=engine, control=control) as launcher:
        tokens = await run(launcher, GENERATE, prompt="x" * 300, count=3)
    assert tokens == fake_continuation([256, *b"x" * 300], 3)
    assert max(batch.forwards[0].token_ids.size for batch in engine.batches) == 64


async def test_a_thousand_launches_leave_nothing_behind(
    open_fake: OpenLauncher,
) -> None:
    program = program_of("return 1")
    async with open_fake() as launcher:
        await launcher.compile(program)
        started = time.monotonic()
        for _ in range(100):
            await run(launcher, program)
        assert launcher.num_running == 0
        assert time.monotonic() - started < LIMIT_SECONDS
