"""A model whose engine is in a process of its own: what is lost with it, and what comes after."""

from __future__ import annotations

import os
import signal
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio

from pie_trio.application.engines.device import Backoff, open_process_device
from pie_trio.application.engines.process import engine_environment
from pie_trio.application.engines.remote import RemoteEngine
from pie_trio.config import ControlConfig, EngineProcessConfig
from pie_trio.control.served_model import open_served_model
from pie_trio.control.tenants import Tenant
from pie_trio.engine_api import Batch, ProcessorSpec
from pie_trio.errors import EngineError, EngineLostError, ExportLostError
from pie_trio.inference.fake import FakeTokenizer
from tests.application.engines.openers import POISON, open_once, start_fake
from tests.control.engines import TIME_LIMIT_SECONDS, Outcomes

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from pie_trio.control.served_model import ServedModel
    from tests.application.engines.openers import Brake

QUICK = EngineProcessConfig(first_delay_seconds=0.01, max_restarts=3)


@asynccontextmanager
async def serve(
    engine: RemoteEngine, *, inline_seconds: float = 0.0
) -> AsyncGenerator[ServedModel]:
    """Serve a model, and close its engine."""
    control = ControlConfig(policy="eager", inline_seconds=inline_seconds)
    try:
        with trio.fail_after(TIME_LIMIT_SECONDS):
            async with open_served_model(
                engine,
                FakeTokenizer(),
                control,
                max_in_flight=64,
                open_device=lambda _: open_process_device(engine),
            ) as model:
                yield model
                model.pool.check()
    finally:
        engine.close()


def submit(model: ServedModel, outcomes: Outcomes, token: int) -> int:
    """Submit a forward of one token on a page of its own, and return the page."""
    page = model.pool.allocate()
    model.batcher.submit(outcomes.command(token, page=page, tenant=Tenant("t", token)))
    return page


async def kill(model: ServedModel) -> None:
    """Kill the engine, and wait until the model knows."""
    lost, on_lost = trio.Event(), model.batcher.on_lost

    def note(error: EngineLostError) -> None:
        on_lost(error)
        lost.set()

    model.batcher.on_lost = note
    engine = model.batcher.engine
    assert isinstance(engine, RemoteEngine)
    os.kill(engine.latest.popen.pid, signal.SIGKILL)
    await lost.wait()
    model.batcher.on_lost = on_lost


async def test_whoever_is_in_a_step_or_waits_is_told_and_the_next_command_works(
    brake: Brake, tmp_path: Path
) -> None:
    engine, outcomes = start_fake(tmp_path, config=QUICK), Outcomes()
    async with serve(engine) as model:
        brake.set()
        pages = [submit(model, outcomes, 1)]
        await trio.to_thread.run_sync(brake.wait_held)
        pages += [submit(model, outcomes, token) for token in (2, 3)]
        await kill(model)
        await outcomes.wait(1, 2, 3)
        for token in (1, 2, 3):
            assert isinstance(outcomes.error(token), EngineLostError)
        assert model.state == "restarting"
        pages.append(submit(model, outcomes, 4))  # waits until it has started again
        await outcomes.wait(4)
        assert outcomes.tokens(4)
        assert model.batcher.is_restored
        for page in pages:
            model.pool.release(page)
        assert model.pool.num_free == model.pool.num_pages


async def test_what_the_engine_held_is_not_taken_for_something_else_later(
    tmp_path: Path,
) -> None:
    engine, outcomes = start_fake(tmp_path, config=QUICK), Outcomes()
    async with serve(engine) as model:
        page = submit(model, outcomes, 1)
        model.pool.positions[page, 0] = 0
        await outcomes.wait(1)
        processor = model.processors.new()
        await model.processors.compile(processor, ProcessorSpec())
        slot = model.embeds.allocate()
        model.embeds.note_stored([slot])
        await kill(model)
        await model.batcher.wait_restored()
        assert model.pool.num_free == model.pool.num_pages, "it has no place"
        on = outcomes.command(2, page=page, start=1)
        model.batcher.submit(on)
        model.batcher.submit(outcomes.project(3, [slot]))
        await outcomes.wait(2, 3)
        for token in (2, 3):
            assert isinstance(outcomes.error(token), EngineLostError)
        with pytest.raises(EngineLostError):
            processor.check_made()
        again = outcomes.command(4, page=page)  # from its beginning
        model.batcher.submit(again)
        await outcomes.wait(4)
        assert outcomes.tokens(4)
        assert not model.pool.holes
        model.pool.release(page)
        model.embeds.release(slot)
        assert model.embeds.allocate() == slot
        assert not model.embeds.lost


async def test_exports_on_the_device_are_empty_and_those_in_host_memory_are_there(
    tmp_path: Path,
) -> None:
    from pie_trio.control.exports import Export, Permission

    engine, outcomes = start_fake(tmp_path, config=QUICK), Outcomes()
    async with serve(engine) as model:
        pages = [submit(model, outcomes, token) for token in (1, 2)]
        await outcomes.wait(1, 2)
        for page, name in zip(pages, ("device", "host"), strict=True):
            model.pool.positions[page, 0] = 0
            model.exports.add(
                Export(
                    "me", name, [page], [None], Permission(), True, None, b"", "i", 0.0
                )
            )
            model.pool.release(page)
        data = np.zeros((1, engine.info.page_bytes), np.uint8)
        model.pool.swap_out(pages[1:], data)
        await kill(model)
        await model.batcher.wait_restored()
        found = model.exports.list_for("me", "")
        assert [(e.name, len(e.pages)) for e in found] == [("device", 0), ("host", 1)]
        with pytest.raises(ExportLostError, match=r"'device' .*\(the engine was lost"):
            model.exports.take("me", "device", 1)
        model.exports.clear()
        assert model.pool.num_free == model.pool.num_pages


async def test_an_engine_that_is_lost_too_often_stays_away(tmp_path: Path) -> None:
    engine, outcomes = start_fake(tmp_path, config=QUICK), Outcomes()
    async with serve(engine) as model:
        for _ in range(QUICK.max_restarts + 1):
            submit(model, outcomes, POISON)
            await outcomes.wait(POISON)
            assert isinstance(outcomes.by_token.pop(POISON), EngineLostError)
            await model.batcher.wait_restored()
        assert model.state == "lost"
        submit(model, outcomes, 1)
        await outcomes.wait(1)
        assert isinstance(outcomes.error(1), EngineError)
        assert "start the server anew" in str(outcomes.error(1))


async def test_an_engine_that_does_not_start_again_is_tried_again(
    brake: Brake, tmp_path: Path
) -> None:
    engine = RemoteEngine(
        "fake",
        partial(open_once, str(tmp_path)),
        engine_environment(1),
        config=EngineProcessConfig(first_delay_seconds=0.01, max_restarts=2),
    )
    async with serve(engine) as model:
        await kill(model)
        await model.batcher.wait_restored()
        assert model.state == "lost"
        assert isinstance(model.batcher.refusal, EngineLostError)


async def test_a_step_that_takes_long_is_reported_and_then_ended(
    brake: Brake, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = EngineProcessConfig(
        report_seconds=0.1, step_seconds=0.5, first_delay_seconds=0.01
    )
    engine, outcomes = start_fake(tmp_path, config=config), Outcomes()
    async with serve(engine) as model:
        brake.set()
        submit(model, outcomes, 1)
        await trio.to_thread.run_sync(brake.wait_held)
        await outcomes.wait(1)
        assert "a step was not done after 0.5 s" in str(outcomes.error(1))
        submit(model, outcomes, 2)
        await outcomes.wait(2)
        assert outcomes.tokens(2)
    assert "a step of fake takes" in caplog.text


async def test_a_model_that_is_closed_in_the_middle_of_a_step_does_not_wait_for_it(
    brake: Brake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, outcomes = start_fake(tmp_path), Outcomes()
    close = engine.close
    monkeypatch.setattr(engine, "close", lambda: None)
    async with serve(engine) as model:
        brake.set()
        submit(model, outcomes, 1)
        await trio.to_thread.run_sync(brake.wait_held)
    assert isinstance(outcomes.error(1), Exception)
    with pytest.raises(EngineLostError, match="in the middle of a step"):
        engine.execute(Batch())  # the answer of the other would come
    close()


async def test_a_command_that_is_withdrawn_while_there_is_no_engine_ends(
    tmp_path: Path,
) -> None:
    config = EngineProcessConfig(first_delay_seconds=1000.0, max_delay_seconds=1000.0)
    engine, outcomes = start_fake(tmp_path, config=config), Outcomes()
    async with serve(engine) as model:
        await kill(model)
        command = outcomes.command(1, page=model.pool.allocate())
        model.batcher.submit(command)
        command.withdraw()
        await outcomes.wait(1)


async def test_a_lone_step_gives_the_same_result_in_the_loop(tmp_path: Path) -> None:
    engine, outcomes = start_fake(tmp_path), Outcomes()
    async with serve(engine, inline_seconds=10.0) as model:
        tenant = Tenant("alone", 1)
        model.batcher.tenants[tenant] = None
        page = model.pool.allocate()
        for token in range(1, 30):
            model.batcher.submit(outcomes.command(token, page=page, tenant=tenant))
            await outcomes.wait(token)
            expected = submit(model, outcomes, token + 100)
            await outcomes.wait(token + 100)
            model.pool.release(expected)
        assert all(outcomes.tokens(token) for token in range(1, 30))


def test_restarts_wait_longer_each_time_until_there_were_too_many() -> None:
    config = EngineProcessConfig(
        first_delay_seconds=1, max_delay_seconds=3, max_restarts=4, window_seconds=100
    )
    backoff = Backoff(config)
    assert [backoff.next_delay(t) for t in (0, 1, 2, 3, 4)] == [1, 2, 3, 3, None]
    assert backoff.next_delay(100.5) == 3, "the first counts no more"
