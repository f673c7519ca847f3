"""Hostile inferlets beside well-behaved ones: counts, not times."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.lowlevel

from pie_trio.application.computing import WORK_SECONDS
from pie_trio.config import SharedLimits
from pie_trio.control.quotas import Quotas
from pie_trio.errors import GuestFailedError, GuestTrappedError, LimitError
from pie_trio.inference.fake import FakeEngine
from tests.application.conftest import OpenLauncher, program_of

if TYPE_CHECKING:
    from trio.testing import MockClock

    from pie_trio.application.computing import Account
    from pie_trio.application.lifecycle.instances import Launcher
    from pie_trio.application.lifecycle.programs import SourceProgram
    from pie_trio.engine_api import Batch, BatchResult

NUM_GOOD = 16
NUM_TOKENS = 24

GOOD = program_of(
    "async with Context() as context:\n"
    "    dist = await context.forward(range(1, 17), top=4)\n"
    "    tokens = []\n"
    f"    for _ in range({NUM_TOKENS}):\n"
    "        tokens.append(dist.argmax())\n"
    "        dist = await context.forward(tokens[-1:], top=4)\n"
    "return tokens\n"
)

TRY = "while True:\n    try:\n{body}    except Exception:\n        await sleep(0.001)\n"


def trying(*lines: str) -> str:
    return TRY.format(body="".join(f"        {line}\n" for line in lines))


HOSTILE = {
    "spin": "while True: pass",
    "pages": "queue = Queue()\n" + trying("queue.alloc_kvpages(4096)"),
    "calls": "while True: current_time()",
    "output": "while True: print('x' * 1000)",
    "never reads": (
        "context = Context()\n"
        "context.append(range(1, 17))\n"
        "chunk = await context.generate(max_tokens=10000, stop_tokens=[]).__anext__()\n"
        "while True: broadcast('nobody', 'x' * 1000)\n"
    ),
    "children": trying("async with spawn(): pass"),
    "grammars": trying(
        "grammar = Grammar.regex('[ab]{1,300}')",
        "async with await Processor.create(grammar=grammar): pass",
    ),
    "topics": trying(
        "await subscribe('t', hears_itself=True).__aenter__()",
        "broadcast('t', 'x' * 10000)",
    ),
}


class CountingEngine(FakeEngine):
    """Counts its steps."""

    num_steps = 0

    def execute(self, batch: Batch) -> BatchResult:
        self.num_steps += 1
        return super().execute(batch)


class Turns:
    """Counts the turns that a launcher gives to those whose account is overdrawn."""

    def __init__(self, launcher: Launcher, engine: CountingEngine) -> None:
        self.at_step: list[int] = []
        share, wait_turn = launcher._background, launcher._background.wait_turn

        async def count(account: Account) -> None:
            is_overdrawn = account.is_overdrawn
            await wait_turn(account)
            if is_overdrawn:
                self.at_step.append(engine.num_steps)

        vars(share)["wait_turn"] = count

    def num_long_waits(self, first: int, last: int) -> int:
        """Return how many of these steps had more than two turns before the next one.

        Before and after, none waited.
        """
        within = Counter(step for step in self.at_step if first < step < last)
        return sum(count > 2 for count in within.values())


async def run_good(launcher: Launcher, owner: str, found: list[list[int]]) -> None:
    found.append(json.loads(await launcher.prepare(GOOD, {}, owner=owner).run()))


@pytest.mark.parametrize("is_one_owner", [False, True])
async def test_the_well_behaved_get_what_they_get_alone(
    open_fake: OpenLauncher, is_one_owner: bool
) -> None:
    engine = CountingEngine(num_pages=512)
    quotas = Quotas(SharedLimits(), SharedLimits(pages=20_000, instances=200))
    async with open_fake(engine=engine, services={"quotas": quotas}) as launcher:
        alone: list[list[int]] = []
        await run_good(launcher, "ann", alone)
        turns = Turns(launcher, engine)
        found: list[list[int]] = []
        errors: list[Exception] = []

        async def run_hostile(name: str, program: SourceProgram) -> None:
            owner = "ann" if is_one_owner else name
            try:
                await launcher.prepare(program, {}, owner=owner).run()
            except (LimitError, GuestFailedError, GuestTrappedError) as error:
                errors.append(error)

        async with trio.open_nursery() as hostile:
            for name, body in HOSTILE.items():
                hostile.start_soon(run_hostile, name, program_of(body))
            with trio.fail_after(60):
                while len(turns.at_step) < 4:  # they have used up what they have
                    await trio.lowlevel.checkpoint()
            first = engine.num_steps
            with trio.fail_after(120):
                async with trio.open_nursery() as good:
                    for _ in range(NUM_GOOD):
                        good.start_soon(run_good, launcher, "ann", found)
            # A machine that stands still now and then makes the well-behaved look idle: some steps
            # are late by that. If batches waited for the others, nearly all would be.
            last = engine.num_steps
            num_long_waits = turns.num_long_waits(first, last)
            assert num_long_waits <= max(1, (last - first) // 2), (
                "or batches wait for all of them"
            )
            hostile.cancel_scope.cancel()
        assert found == alone * NUM_GOOD
        assert errors == [], "they get errors where they ask for too much, and go on"
        assert quotas.server.is_idle
        assert launcher.num_running == 0
    assert len(launcher.services.topics) == 0


async def test_a_list_of_many_values_ends_its_own_instance_alone(
    open_fake: OpenLauncher,
) -> None:
    # Each value takes tens of bytes in the host while it crosses.
    program = program_of("await send(bytes(50_000_000))")
    async with open_fake() as launcher:
        with pytest.raises(GuestTrappedError, match="too much data"):
            await launcher.prepare(program, {}).run()
        found: list[list[int]] = []
        await run_good(launcher, "ann", found)
        assert len(found[0]) == NUM_TOKENS


async def test_a_result_that_is_too_large_is_an_error_with_the_numbers(
    open_fake: OpenLauncher,
) -> None:
    async with open_fake(max_unread_bytes=1000) as launcher:
        with pytest.raises(
            LimitError, match="returned 2002 characters as JSON, but 1000"
        ):
            await launcher.prepare(program_of("return 'x' * 2000"), {}).run()


async def test_a_failure_keeps_a_part_of_its_message(open_fake: OpenLauncher) -> None:
    async with open_fake() as launcher:
        with pytest.raises(GuestFailedError) as failure:
            await launcher.prepare(
                program_of("raise ValueError('x' * 10**6)"), {}
            ).run()
    assert len(failure.value.message) == 1 << 16


async def test_all_below_an_inferlet_are_limited_together(
    open_fake: OpenLauncher,
) -> None:
    program = program_of(
        "if left:\n    async with spawn(left=left - 1): pass\n",
        parameters="left: int = 0",
    )
    async with open_fake(max_descendants=2) as launcher:
        await launcher.prepare(program, {"left": 2}).run()
        with pytest.raises(GuestFailedError) as failure:
            await launcher.prepare(program, {"left": 3}).run()
    assert "4 instances would be in use by the inferlets of" in failure.value.traceback


async def test_children_and_their_parent_have_one_account(
    open_fake: OpenLauncher,
) -> None:
    program = program_of(
        "if is_child:\n"
        "    for _ in range(10**6): pass\n"
        "    return\n"
        "for _ in range(3):\n"
        "    async with spawn(is_child=True): pass\n",
        parameters="is_child: bool = False",
    )
    async with open_fake() as launcher:
        instance = launcher.prepare(program, {})
        await instance.run()
        account = instance.session.tree.account
        assert account is not None
        lone = launcher.prepare(program, {"is_child": True})
        await lone.run()
        of_lone = lone.session.tree.account
        assert of_lone is not None
        assert account is not of_lone
        assert account.owner is of_lone.owner
        assert account.used_seconds > 2 * of_lone.used_seconds > 0


async def test_who_waits_for_the_end_of_a_generation_is_at_work(
    open_fake: OpenLauncher, monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock
) -> None:
    """Its guest does not run meanwhile, but it is to be spared all the same."""
    program = program_of(
        "context = Context()\n"
        "context.append(range(1, 17))\n"
        "return await context.generate(max_tokens=200, stop_tokens=[]).tokens()\n"
    )
    async with open_fake(engine=FakeEngine(num_pages=64)) as launcher:
        (model,) = launcher.models.values()
        found: list[bool] = []

        note_step = model.batcher._note_step

        def look(*arguments: Any) -> float:
            elapsed = note_step(*arguments)
            mock_clock.jump(2 * WORK_SECONDS)
            launcher._count_steps()
            found.append(other.has_neighbours)
            return elapsed

        other = launcher._accounts.open("other")
        monkeypatch.setattr(model.batcher, "_note_step", look)
        with trio.fail_after(1000):
            await launcher.prepare(program, {}).run()
        assert len(found) == 200
        assert all(found[:-1]), "the last one has ended"
        assert not launcher._observers, "nobody is left"
