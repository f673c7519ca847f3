"""A guest that is cancelled cleans up in Wasm; one that does not end by then is dropped."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import trio

from pie_trio.errors import CancelledError, GuestFailedError, OutOfPagesError
from tests.application.conftest import OpenLauncher, program_of

if TYPE_CHECKING:
    from pie_trio.application.host.instance_log import LogLine
    from pie_trio.application.lifecycle.programs import SourceProgram

LIMIT_SECONDS = 30
REASON = CancelledError("the test wants it")


async def stop_once_here(
    open_fake: OpenLauncher, program: SourceProgram, *, grace_seconds: float = 60
) -> tuple[object, list[str]]:
    """Stop a program once it has logged ``here``; return its outcome and its log."""
    here = trio.Event()

    def note(line: LogLine) -> None:
        if line.text == "here":
            here.set()

    outcome: object = None
    async with open_fake(grace_seconds=grace_seconds) as launcher:
        instance = launcher.prepare(program, {}, on_log=note)

        async def run() -> None:
            nonlocal outcome
            try:
                outcome = json.loads(await instance.run())
            except (CancelledError, GuestFailedError, OutOfPagesError) as error:
                outcome = error

        with trio.fail_after(LIMIT_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                await here.wait()
                instance.session.stop(REASON)
        (model,) = launcher.models.values()
        model.pool.check()
        assert model.pool.num_free == model.pool.num_pages
        assert launcher.num_running == 0
    return outcome, [line.text for line in instance.session.log.lines]


WAITS = {
    "a sleep": "await sleep(1e6)",
    "a message": "await receive()",
    "an answer": "while True: await ctx.sample(Greedy())",
    "a stream": "async for _ in ctx.generate(max_tokens=10**6, stop_tokens=[]): pass",
    "tasks": (
        "async with open_nursery() as nursery:\n"
        "        nursery.start_soon(sleep, 1e6)\n"
        "        await receive()"
    ),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
async def test_a_program_cleans_up_wherever_it_waits(
    open_fake: OpenLauncher, wait: str
) -> None:
    program = program_of(
        "ctx = Context()\n"
        "await ctx.fill('x' * 40)\n"
        "await ctx.forward()\n"
        "log('here')\n"
        "try:\n"
        f"    {wait}\n"
        "finally:\n"
        "    with CancelScope(shield=True):\n"
        "        async with Context() as other:\n"
        "            await other.fill('y')\n"
        "            await other.generate(max_tokens=3, stop_tokens=[]).tokens()\n"
        "        await sleep(0.01)\n"
        "    log('cleaned up')"
    )
    outcome, log = await stop_once_here(open_fake, program)
    assert outcome is REASON, log
    assert (log[0], log[-1]) == ("here", "cleaned up")


STUBBORN = {
    "computes": "while True: pass",
    "blocks": "import time; time.sleep(1e6)",
    "is shielded": "with CancelScope(shield=True): await sleep(1e6)",
}


@pytest.mark.parametrize("body", STUBBORN.values(), ids=STUBBORN)
async def test_a_program_that_does_not_end_is_dropped_after_its_time(
    open_fake: OpenLauncher, body: str
) -> None:
    program = program_of(f"log('here')\n{body}\nlog('cleaned up')")
    outcome, log = await stop_once_here(open_fake, program, grace_seconds=0.2)
    assert outcome is REASON
    assert log == ["here"]


async def test_a_program_may_return_all_the_same(open_fake: OpenLauncher) -> None:
    program = program_of(
        "log('here')\n"
        "with CancelScope(shield=True): await sleep(0.2)\n"
        "return 'finished'"
    )
    outcome, _ = await stop_once_here(open_fake, program)
    assert outcome == "finished"


async def test_an_error_of_the_cleaning_up_comes_out(open_fake: OpenLauncher) -> None:
    program = program_of(
        "log('here')\ntry: await sleep(1e6)\nfinally: raise ValueError('mine')"
    )
    outcome, _ = await stop_once_here(open_fake, program)
    assert isinstance(outcome, GuestFailedError)
    assert outcome.kind == "ValueError"


async def test_a_program_that_is_stopped_before_it_runs_ends_at_its_first_wait(
    open_fake: OpenLauncher,
) -> None:
    async with open_fake(grace_seconds=60) as launcher:
        instance = launcher.prepare(program_of("log('runs')\nawait sleep(1e6)"), {})
        instance.session.stop(REASON)
        with trio.fail_after(LIMIT_SECONDS), pytest.raises(CancelledError) as caught:
            await instance.run()
        assert caught.value is REASON
        assert [line.text for line in instance.session.log.lines] == ["runs"]


async def test_a_parent_that_cancels_its_child_lets_it_clean_up(
    open_fake: OpenLauncher,
) -> None:
    program = program_of(
        "if is_child:\n"
        "    try:\n"
        "        await send('ready')\n"
        "        await sleep(1e6)\n"
        "    finally:\n"
        "        with CancelScope(shield=True): await send('cleaned up')\n"
        "async with spawn(is_child=True) as child:\n"
        "    messages = [await child.receive()]\n"
        "    child.cancel()\n"
        "    async for message in child: messages.append(message)\n"
        "    try: await child.wait()\n"
        "    except ChildFailedError as error: messages.append(str(error))\n"
        "return messages",
        parameters="is_child: bool = False",
    )
    async with open_fake(grace_seconds=60) as launcher:
        with trio.fail_after(LIMIT_SECONDS):
            result = json.loads(await launcher.prepare(program, {}).run())
    assert result[:2] == ["ready", "cleaned up"]
    assert "the child was cancelled" in result[2]
