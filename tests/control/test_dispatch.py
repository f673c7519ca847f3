from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from pie_trio.config import ControlConfig
from pie_trio.control.commands import Priority
from pie_trio.control.pages import physical_of
from pie_trio.control.served_model import open_served_model
from pie_trio.engine_api import BatchResult, PageCopy
from pie_trio.errors import CancelledError, EngineError
from pie_trio.inference.fake import FakeEngine, FakeTokenizer
from tests.control.engines import TIME_LIMIT_SECONDS, Gate, Outcomes, tokens_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from pie_trio.control.arrivals import Arrivals
    from pie_trio.control.commands import Command
    from pie_trio.control.dispatch import Batcher
    from pie_trio.control.embeds import EmbedPool
    from pie_trio.control.pages import PagePool
    from pie_trio.engine_api import Batch

NUM_PAGES, PAGE_SIZE = 16, 4


@dataclass(frozen=True)
class Rig:
    engine: FakeEngine
    gate: Gate
    batcher: Batcher
    pool: PagePool
    arrivals: Arrivals
    embeds: EmbedPool
    outcomes: Outcomes

    def submit(self, token: int, **details: Any) -> Command:
        """Submit a command that writes a page of its own, unless ``page`` names one."""
        page = details.pop("page", None)
        if page is None:
            page = self.pool.allocate()
        command = self.outcomes.command(token, page=page, **details)
        self.batcher.submit(command)
        return command

    @property
    def batches(self) -> list[list[int]]:
        return tokens_of(self.engine.batches)


@asynccontextmanager
async def open_rig(
    *,
    gated: bool = False,
    num_pages: int = NUM_PAGES,
    failures: dict[int, Exception] | None = None,
    **control: Any,
) -> AsyncGenerator[Rig]:
    gate = Gate(is_open=not gated)
    engine = FakeEngine(
        num_pages=num_pages, page_size=PAGE_SIZE, failures=failures, on_step=gate
    )
    control = {"policy": "rendezvous:0.5,0.0", **control}
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_served_model(
            engine,
            FakeTokenizer(),
            ControlConfig(inline_seconds=0.0, **control),
            max_in_flight=64,
        ) as model:
            try:
                yield Rig(
                    engine,
                    gate,
                    model.batcher,
                    model.pool,
                    model.batcher.arrivals,
                    model.embeds,
                    Outcomes(),
                )
            finally:
                gate.open()


async def test_calls_that_arrive_during_a_step_share_the_next_batch() -> None:
    async with open_rig(gated=True) as rig:
        rig.submit(1)
        await rig.gate.wait_started(1)
        for token in (2, 3, 4):
            rig.submit(token)
        rig.gate.open()
        await rig.outcomes.wait(1, 2, 3, 4)
        assert rig.batches == [[1], [2, 3, 4]]
        assert rig.batcher.num_steps == 2
        assert rig.batcher.num_unfinished == 0


async def test_a_batch_is_limited_and_the_oldest_go_first() -> None:
    async with open_rig(gated=True, max_batch=2) as rig:
        rig.submit(0)
        await rig.gate.wait_started(1)
        for token in (5, 4, 3, 2, 1):
            rig.submit(token)
        rig.gate.open()
        await rig.outcomes.wait(1, 2, 3, 4, 5)
        assert rig.batches == [[0], [4, 5], [2, 3], [1]]


async def test_each_command_gets_its_own_result() -> None:
    async with open_rig(gated=True) as rig:
        rig.submit(0)
        await rig.gate.wait_started(1)
        for token in (1, 2, 3):
            rig.submit(token)
        rig.gate.open()
        await rig.outcomes.wait(1, 2, 3)
        alone = FakeEngine(num_pages=NUM_PAGES, page_size=PAGE_SIZE)
        for batch in rig.engine.batches:
            for request in batch.forwards:
                token = int(request.token_ids[0])
                (expected,) = alone.execute(type(batch)((request,))).forwards
                assert not isinstance(expected, Exception)
                assert rig.outcomes.tokens(token) == expected[0].token_ids.tolist()


async def test_commands_on_one_page_run_in_order_and_others_pass_them() -> None:
    async with open_rig(gated=True) as rig:
        page = rig.pool.allocate()
        rig.submit(0)
        await rig.gate.wait_started(1)
        for token in (1, 2, 3):
            rig.submit(token, page=page)
        rig.submit(4)
        rig.gate.open()
        await rig.outcomes.wait(1, 2, 3, 4)
        assert rig.batches == [[0], [1, 4], [2], [3]]


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (EngineError("scripted"), "scripted"),
        (ValueError("a bug"), "the batch failed: ValueError: a bug"),
    ],
    ids=["engine error", "bug"],
)
async def test_a_failure_fails_just_its_batch(failure: Exception, message: str) -> None:
    async with open_rig(gated=True, failures={1: failure}) as rig:
        page = rig.pool.allocate()
        rig.submit(0)
        await rig.gate.wait_started(1)
        for token in (1, 2):
            rig.submit(token)
        rig.submit(3, page=page)
        rig.submit(4, page=page)
        rig.gate.open()
        await rig.outcomes.wait(0, 1, 2, 3, 4)
        for token in (1, 2, 3):
            error = rig.outcomes.error(token)
            assert isinstance(error, EngineError)
            assert str(error) == message
        for token in (0, 4):
            assert rig.outcomes.tokens(token)
        assert rig.batches == [[0], [1, 2, 3], [4]]


class ForgetfulEngine(FakeEngine):
    """An engine with a bug: it forgets the last result of its first batch."""

    def execute(self, batch: Batch) -> BatchResult:
        result = super().execute(batch)
        return BatchResult(()) if len(self.batches) == 1 else result


async def test_missing_results_fail_the_batch_and_serving_goes_on() -> None:
    engine = ForgetfulEngine(num_pages=NUM_PAGES, page_size=PAGE_SIZE)
    outcomes = Outcomes()
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_served_model(
            engine, FakeTokenizer(), ControlConfig(), max_in_flight=8
        ) as model:
            for token in (1, 2):
                page = model.pool.allocate()
                model.batcher.submit(outcomes.command(token, page=page))
                await outcomes.wait(token)
            error = outcomes.error(1)
            assert isinstance(error, EngineError)
            assert str(error) == "1 requests, but 0 results"
            assert outcomes.tokens(2)


async def test_withdrawn_commands_never_reach_the_engine() -> None:
    async with open_rig(gated=True) as rig:
        page = rig.pool.allocate()
        rig.submit(0)
        await rig.gate.wait_started(1)
        commands = {t: rig.submit(t, page=page) for t in (1, 2, 3, 4)}
        for token in (1, 3):
            commands[token].withdraw()
        rig.gate.open()
        await rig.outcomes.wait(1, 2, 3, 4)
        assert rig.batches == [[0], [2], [4]], "what depends on them runs in order"
        for token in (1, 3):
            assert isinstance(rig.outcomes.by_token[token], CancelledError)


async def test_nothing_runs_if_everything_is_withdrawn() -> None:
    async with open_rig() as rig:
        page = rig.pool.allocate()
        for token in (1, 2):
            rig.submit(token, page=page).withdraw()
        await rig.outcomes.wait(1, 2)
        assert rig.batches == []


async def test_a_command_that_has_started_cannot_be_withdrawn() -> None:
    async with open_rig(gated=True) as rig:
        command = rig.submit(1)
        await rig.gate.wait_started(1)
        command.withdraw()
        rig.gate.open()
        await rig.outcomes.wait(1)
        assert rig.outcomes.tokens(1)


def copy_of(rig: Rig, token: int, source: int) -> tuple[Command, int]:
    """Submit a command that first copies ``source`` to the new page that it writes."""
    target = rig.pool.allocate()
    copy = PageCopy(source, target, 0, 0, PAGE_SIZE)
    return rig.submit(token, page=target, copies=[copy]), target


async def test_a_withdrawn_command_still_makes_the_copies_that_a_handle_stands_for() -> (
    None
):
    async with open_rig(gated=True) as rig:
        source = rig.pool.allocate()
        rig.submit(0)
        await rig.gate.wait_started(1)
        command, target = copy_of(rig, 1, source)
        command.withdraw()
        rig.submit(2, page=target)
        rig.gate.let_go()
        await rig.gate.wait_started(2)
        command.withdraw()  # now that it has started
        rig.gate.open()
        await rig.outcomes.wait(1, 2)
        assert isinstance(rig.outcomes.by_token[1], CancelledError)
        assert rig.batches == [[0], [], [2]]
        old, new = physical_of(rig.pool, [source, target])
        assert rig.engine.batches[1].copies == (PageCopy(old, new, 0, 0, PAGE_SIZE),)


async def test_copies_that_nobody_counts_on_are_not_made() -> None:
    async with open_rig(gated=True) as rig:
        source = rig.pool.allocate()
        rig.submit(0)
        await rig.gate.wait_started(1)
        command, target = copy_of(rig, 1, source)
        after = rig.submit(2, page=target)
        for withdrawn in (command, after):
            withdrawn.withdraw()
        rig.pool.release(target)
        rig.gate.open()
        await rig.outcomes.wait(1, 2)
        assert rig.batches == [[0]]


async def test_copies_are_made_for_a_reader_whose_handle_was_given_back() -> None:
    async with open_rig(gated=True) as rig:
        source = rig.pool.allocate()
        rig.submit(0)
        await rig.gate.wait_started(1)
        command, target = copy_of(rig, 1, source)
        rig.submit(2, reads=[target])
        command.withdraw()
        rig.pool.release(target)
        rig.gate.open()
        await rig.outcomes.wait(1, 2)
        assert rig.batches == [[0], [], [2]]


async def test_a_withdrawn_copy_is_made_for_the_handle_that_stands_for_it() -> None:
    """Or withdrawing it would lose the rest of a page that it was to write first."""
    async with open_rig(gated=True) as rig:
        source, target = rig.pool.allocate(), rig.pool.allocate()
        rig.submit(1, page=source, num_tokens=2)
        await rig.gate.wait_started(1)
        command = rig.outcomes.copy(2, [PageCopy(source, target, 0, 1, 2)])
        rig.pool.positions[target, 1:3] = [0, 1]
        rig.batcher.submit(command)
        command.withdraw()
        rig.gate.open()
        await rig.outcomes.wait(1, 2)
        assert isinstance(rig.outcomes.error(2), CancelledError)
        assert rig.pool.filled[target].tolist() == [False, True, True, False]
        assert rig.pool.holes == set()


async def test_what_was_withdrawn_while_it_was_blocked_does_not_wait_for_a_batch() -> (
    None
):
    async with open_rig(policy="k_or_t:3,3000") as rig:
        page = rig.pool.allocate()
        rig.submit(1, page=page)
        blocked = rig.submit(2, page=page)
        await wait_all_tasks_blocked()
        blocked.withdraw()
        await wait_all_tasks_blocked()
        rig.submit(3)
        rig.submit(4)
        await rig.outcomes.wait(1, 2, 3, 4)
        assert isinstance(rig.outcomes.error(2), CancelledError)


async def test_a_copy_that_comes_later_does_not_hide_a_hole() -> None:
    async with open_rig(gated=True) as rig:
        page, empty = rig.pool.allocate(), rig.pool.allocate()
        rig.submit(0)
        await rig.gate.wait_started(1)
        rig.pool.positions[page, :2] = [0, 1]
        lost = rig.submit(1, page=page)
        rig.submit(2, page=page, start=1)
        rig.pool.positions[page, 0] = -1  # the copied slot was never written
        rig.batcher.submit(rig.outcomes.copy(3, [PageCopy(empty, page, 0, 0, 1)]))
        lost.withdraw()
        rig.gate.open()
        await rig.outcomes.wait(1, 2, 3)
        assert isinstance(rig.outcomes.error(2), CancelledError), "it sees slot 0"
        assert rig.outcomes.by_token[3] is None


async def test_a_copy_does_not_miss_what_is_to_be_written_after_it() -> None:
    async with open_rig(gated=True) as rig:
        source, target = rig.pool.allocate(), rig.pool.allocate()
        rig.pool.positions[source] = [0, 1, -1, -1]
        rig.pool.filled[source, 1] = True  # slot 0 is a hole, which the copy leaves out
        rig.pool.note_written(np.array([source]), 0, 1, is_good=False)
        rig.submit(0)
        await rig.gate.wait_started(1)
        rig.pool.positions[target, :2] = [1, -1]
        rig.batcher.submit(rig.outcomes.copy(1, [PageCopy(source, target, 1, 0, 2)]))
        rig.pool.positions[source, 2] = 2
        late = rig.submit(2, page=source, num_tokens=3)
        rig.gate.open()
        await rig.outcomes.wait(1, 2)
        assert rig.outcomes.by_token[1] is None
        assert late.is_finished
        assert rig.pool.filled[target].tolist() == [True, False, False, False]


async def test_pages_are_kept_until_the_commands_that_use_them_are_done() -> None:
    async with open_rig(gated=True) as rig:
        read, written = rig.pool.allocate(), rig.pool.allocate()
        rig.submit(1, page=written, reads=[read])
        queued = rig.submit(2, page=written)
        await rig.gate.wait_started(1)
        for page in (read, written):
            rig.pool.release(page)
        assert rig.pool.num_free == NUM_PAGES - 2
        queued.withdraw()
        assert rig.pool.num_free == NUM_PAGES - 2
        rig.gate.open()
        await rig.outcomes.wait(1, 2)
        assert rig.pool.num_free == NUM_PAGES
        rig.pool.check()


async def test_a_page_takes_room_on_the_device_once_it_is_written() -> None:
    async with open_rig() as rig:
        pages = [rig.pool.allocate() for _ in range(2 * NUM_PAGES)]
        assert rig.pool.num_free == NUM_PAGES
        rig.submit(1, page=pages[-1])
        await rig.outcomes.wait(1)
        assert rig.pool.num_free == NUM_PAGES - 1
        for page in pages:
            rig.pool.release(page)
        assert rig.pool.num_free == NUM_PAGES
        rig.pool.check()


async def test_what_becomes_ready_by_a_withdrawal_does_not_see_the_hole() -> None:
    async with open_rig(gated=True) as rig:
        page = rig.pool.allocate()
        rig.submit(0)
        await rig.gate.wait_started(1)
        rig.pool.positions[page, :2] = [0, 1]
        withdrawn = rig.submit(1, page=page)
        late = rig.submit(2, page=page, start=1)
        withdrawn.withdraw()
        rig.gate.open()
        await rig.outcomes.wait(1, 2)
        assert "would see tokens whose own command" in str(rig.outcomes.error(2))
        assert late.num_run == 0
        assert rig.batches == [[0]]


async def test_a_withdrawn_command_ends_without_waiting_for_the_policy() -> None:
    async with open_rig(policy="t:1000") as rig:
        rig.submit(1).withdraw()
        rig.submit(2)
        await rig.outcomes.wait(1)
        assert isinstance(rig.outcomes.error(1), CancelledError)
        assert 2 not in rig.outcomes.by_token


async def test_higher_priority_goes_first() -> None:
    async with open_rig(gated=True, max_batch=2) as rig:
        rig.submit(0)
        await rig.gate.wait_started(1)
        for token, priority in enumerate(
            [Priority.LOW, Priority.NORMAL, Priority.HIGH, Priority.NORMAL], 1
        ):
            rig.submit(token, priority=priority)
        rig.gate.open()
        await rig.outcomes.wait(1, 2, 3, 4)
        assert rig.batches == [[0], [2, 3], [1, 4]]


async def test_a_batch_holds_the_kind_that_has_waited_longest() -> None:
    async with open_rig(gated=True) as rig:
        slot = rig.embeds.allocate()
        rig.embeds.note_stored([slot])
        source, target = rig.pool.allocate(), rig.pool.allocate()
        rig.submit(0, page=source)
        await rig.gate.wait_started(1)
        rig.batcher.submit(rig.outcomes.project(1, [slot]))
        rig.submit(2)
        rig.batcher.submit(rig.outcomes.copy(3, [PageCopy(source, target, 0, 0, 1)]))
        rig.batcher.submit(rig.outcomes.project(4, [slot]))
        rig.gate.open()
        await rig.outcomes.wait(1, 2, 3, 4)
        batches = [
            (len(b.forwards), len(b.projections), len(b.copies))
            for b in rig.engine.batches
        ]
        assert batches == [(1, 0, 0), (0, 2, 0), (1, 0, 0), (0, 0, 1)]


async def test_the_batcher_waits_for_those_who_are_about_to_submit() -> None:
    async with open_rig(policy=f"rendezvous:0,{TIME_LIMIT_SECONDS}") as rig:
        for name in ("a", "b"):
            rig.arrivals.expect(name)
        rig.submit(1)
        await wait_all_tasks_blocked()
        rig.submit(2)
        rig.arrivals.settle("a")
        await wait_all_tasks_blocked()
        assert rig.batches == []
        rig.submit(3)
        rig.arrivals.settle("b")
        await rig.outcomes.wait(1, 2, 3)
        assert rig.batches == [[1, 2, 3]]


async def test_who_computes_for_long_does_not_stop_the_others() -> None:
    async with open_rig(policy="rendezvous:0,0.001") as rig:
        rig.arrivals.expect("slow")
        rig.submit(1)
        await rig.outcomes.wait(1)
        assert rig.arrivals.num_expected == 0


async def test_what_is_left_when_the_batcher_is_cancelled_fails() -> None:
    """Or instances that are cancelled with it would wait for ever, shielded."""
    async with open_rig(gated=True) as rig:
        page = rig.pool.allocate()
        for token in (1, 2):  # one in the step, one that waits for it
            rig.submit(token, page=page)
        await rig.gate.wait_started(1)
        rig.submit(3)  # and one in the channel
        rig.gate.let_go()
    assert rig.outcomes.tokens(1)
    for token in (2, 3):
        assert isinstance(rig.outcomes.by_token[token], CancelledError)
    rig.submit(4)
    assert isinstance(rig.outcomes.by_token[4], CancelledError), "nobody is there"
    assert rig.batches == [[1]]
    assert rig.batcher.num_unfinished == 0


async def test_an_error_in_the_block_is_the_only_one_that_leaves_it() -> None:
    with pytest.RaisesGroup(KeyError):
        async with open_rig() as rig:
            rig.submit(1)
            await rig.outcomes.wait(1)
            await wait_all_tasks_blocked()
            raise KeyError("scripted")


async def test_a_block_may_end_while_a_step_runs_and_more_is_ready() -> None:
    async with open_rig(gated=True, max_batch=1) as rig:
        for token in (1, 2, 3):
            rig.submit(token)
        await rig.gate.wait_started(1)
    assert rig.batches == [[1]]
    assert set(rig.outcomes.by_token) == {1, 2, 3}


async def test_a_step_is_not_abandoned_when_the_batcher_is_cancelled() -> None:
    with trio.CancelScope() as scope:
        async with open_rig(gated=True) as rig:
            rig.submit(1)
            await rig.gate.wait_started(1)
            scope.cancel()
            assert rig.outcomes.by_token == {}
    assert rig.outcomes.tokens(1)
    np.testing.assert_array_equal(rig.engine.batch_sizes, [1])
