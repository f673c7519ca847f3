"""Branches of one program: they share batches, and a cancelled one leaves nothing behind."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import trio

from pie_trio.config import ControlConfig
from tests.application.conftest import OpenLauncher, program_of

if TYPE_CHECKING:
    from pie_trio.application.lifecycle.instances import Launcher
    from pie_trio.application.lifecycle.programs import SourceProgram

LIMIT_SECONDS = 120
# However slow the machine: the guest is not preempted, and the batcher waits for it.
PATIENT = {
    "control": ControlConfig(policy=f"rendezvous:0.5,{LIMIT_SECONDS}"),
    "slice_ticks": 10**6,
}

BRANCHES = program_of(
    """
tokens = {}

async def branch(root, number):
    async with root.fork() as ctx:
        token = 97 + number
        for _ in range(steps):
            ctx.append([token])
            token = await ctx.sample(Greedy())
        tokens[number] = token

async with Context() as root:
    await root.forward(list(b"Once upon a time"))
    async with open_nursery() as nursery:
        for number in range(branches):
            nursery.start_soon(branch, root, number)
return [tokens[number] for number in range(branches)]
""",
    parameters="branches: int, steps: int",
)

ABANDONED = program_of(
    """
async def branch(root, number):
    async with root.fork() as ctx:
        with move_on_after(0) if number % 2 else CancelScope() as scope:
            await ctx.forward(list(b"x" * 40))
        cancelled.append(scope.cancelled_caught)

cancelled = []
async with Context() as root:
    await root.forward(list(b"Once upon a time"))
    before = debug_query("pages")
    async with open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(branch, root, number)
    return sorted(cancelled), before, debug_query("pages"), debug_query("tickets")
"""
)


async def run(launcher: Launcher, program: SourceProgram, **arguments: Any) -> Any:
    with trio.fail_after(LIMIT_SECONDS):
        return json.loads(await launcher.prepare(program, arguments).run())


async def test_branches_of_one_program_share_each_batch(
    open_fake: OpenLauncher,
) -> None:
    async with open_fake(**PATIENT) as launcher:
        together = await run(launcher, BRANCHES, branches=5, steps=7)
        (model,) = launcher.models.values()
        steps = [s for s in model.batcher.trace.steps if s.kind == "FORWARD"]
        alone = await run(launcher, BRANCHES, branches=1, steps=7)

    # The prompt, then one step for each token of all branches: nobody waited alone.
    assert [step.size for step in steps] == [1, *[5] * 7]
    assert together[0] == alone[0]


async def test_a_cancelled_branch_withdraws_its_commands_and_gives_back_its_pages(
    open_fake: OpenLauncher,
) -> None:
    async with open_fake(**PATIENT) as launcher:
        cancelled, before, after, tickets = await run(launcher, ABANDONED)
        (model,) = launcher.models.values()
        sizes = [s.size for s in model.batcher.trace.steps if s.kind == "FORWARD"]
        ends = [c.outcome for c in model.batcher.trace.commands if c.kind == "FORWARD"]

    assert cancelled == [False, False, True, True]
    assert sizes == [1, 2], "what was withdrawn did not run"
    assert sorted(ends) == ["CancelledError", "CancelledError", "ok", "ok", "ok"]
    assert after == before, "its pages are back"
    assert not tickets["open"], "and its tickets"
