from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from pie_trio.config import ControlConfig
from pie_trio.control.queues import CommandQueue
from pie_trio.control.served_model import open_served_model
from pie_trio.errors import CancelledError
from pie_trio.inference.fake import FakeEngine, FakeTokenizer
from tests.control.engines import TIME_LIMIT_SECONDS, Gate, Outcomes, note

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from trio.testing import MockClock

    from pie_trio.engine_api import Engine


@asynccontextmanager
async def open_queue(engine: Engine | None = None) -> AsyncGenerator[CommandQueue]:
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_served_model(
            engine or FakeEngine(), FakeTokenizer(), ControlConfig(), max_in_flight=8
        ) as model:
            yield CommandQueue(model)


async def test_an_empty_queue_is_passed_at_once(autojump_clock: MockClock) -> None:
    calls: list[str] = []
    async with open_queue() as queue:
        queue.synchronize(note(calls, "a"))
        assert calls == ["a"]


async def test_a_barrier_is_passed_after_the_commands_before_it_and_only_those(
    autojump_clock: MockClock,
) -> None:
    calls: list[str] = []
    async with open_queue() as queue:
        first, second, third = (Outcomes().command(i, page=i) for i in range(3))
        queue.add(first)
        queue.synchronize(note(calls, "one"))
        queue.add(second)
        queue.synchronize(note(calls, "two"))
        queue.synchronize(note(calls, "also two"))
        queue.add(third)
        queue.finish(second)
        assert calls == [], "the first is not done"
        queue.finish(first)
        assert calls == ["one", "two", "also two"]
        queue.finish(third)
        assert calls == ["one", "two", "also two"]


async def test_a_barrier_that_was_taken_away_is_not_called(
    autojump_clock: MockClock,
) -> None:
    calls: list[str] = []
    async with open_queue() as queue:
        command = Outcomes().command(0, page=0)
        queue.add(command)
        take_away = queue.synchronize(note(calls, "a"))
        queue.synchronize(note(calls, "b"))
        take_away()
        queue.finish(command)
        take_away()
        assert calls == ["b"]


async def test_withdrawing_all_spares_what_has_started() -> None:
    gate, outcomes = Gate(), Outcomes()
    async with open_queue(FakeEngine(on_step=gate)) as queue:
        batcher = queue.model.batcher
        for token in (0, 1):  # the second one waits for the first one's page
            command = outcomes.command(token, page=0)
            queue.add(command)
            batcher.submit(command)
        await gate.wait_started(1)
        queue.withdraw_all()
        gate.open()
        await outcomes.wait(0, 1)
        assert not isinstance(outcomes.by_token[0], Exception)
        assert isinstance(outcomes.by_token[1], CancelledError)
