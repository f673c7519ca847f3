"""Programs on two engines of one model, each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import trio

pytest.importorskip("torch", reason="it runs a model")

from pie_trio.application.engines.remote import RemoteEngine
from pie_trio.application.lifecycle.instances import Launcher, open_launcher
from pie_trio.application.run.command import load_engines
from pie_trio.application.services import open_services
from pie_trio.application.serving import LoadedEngine, open_models
from pie_trio.config import ControlConfig, InstanceLimits, ModelConfig
from pie_trio.errors import GuestFailedError
from tests.application.conftest import program_of
from tests.control.engines import TIME_LIMIT_SECONDS
from tests.model_factory import write_model_directory

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence

    from pie_trio.application.lifecycle.instances import Instance
    from pie_trio.application.wasm.runtime import LinkedComponent
    from pie_trio.control.served_model import ServedModel
    from pie_trio.errors import EngineLostError

GENERATE = """
async with Context() as context:
    await send("placed")
    await receive()
    await context.fill(f"Once upon a time {number}")
    return await context.generate(max_tokens=6, stop_tokens=[]).tokens()
"""
TELLS_A_STORY = """
async with Context() as context:
    await context.fill("Once upon a time there was")
    await context.forward()
    context.export("story", persistent=True)
    return await context.generate(max_tokens=6, stop_tokens=[]).tokens()
"""
GOES_ON = """
async with Context.from_export("story") as context:
    return await context.generate(max_tokens=6, stop_tokens=[]).tokens()
"""
HOLDS = """
async with Context() as context:
    await context.fill("hello")
    await context.forward()
    await send("filled")
    await receive()
    try:
        await context.fill(" more")
        await context.forward()
    except EngineLostError as error:
        return str(error)
    return await context.generate(max_tokens=2, stop_tokens=[]).tokens()
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """A small random model."""
    path = write_model_directory(tmp_path_factory.mktemp("replicas") / "model", "qwen2")
    return ModelConfig(path, "small", num_pages=64, page_size=4, num_embeds=8)


@pytest.fixture(scope="module")
def alone(config: ModelConfig) -> Iterator[Sequence[LoadedEngine]]:
    """One engine, in this process."""
    with load_engines([config]) as engines:
        yield engines


@pytest.fixture(scope="module")
def both(config: ModelConfig) -> Iterator[Sequence[LoadedEngine]]:
    """Two engines, each in a process of its own."""
    with load_engines([replace(config, replicas=2)], "process") as engines:
        yield engines


@asynccontextmanager
async def launching(
    engines: Sequence[LoadedEngine], language: LinkedComponent
) -> AsyncGenerator[Launcher]:
    """Launch programs on these engines; asserts in the end that every page is back."""
    limits = InstanceLimits()
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with (
            open_models(engines, ControlConfig(), limits) as models,
            open_services(models) as services,
            open_launcher(language, services, limits) as launcher,
        ):
            yield launcher
            for model in members(launcher):
                model.exports.clear()
            for model in members(launcher):
                model.pool.check()
                assert model.pool.num_free == model.pool.num_pages
                assert model.num_inferlets == 0


def members(launcher: Launcher) -> tuple[ServedModel, ...]:
    """Return the replicas of the only model."""
    (model,) = launcher.models.values()
    return model.replicas.members


async def kill_engine(loaded: LoadedEngine, model: ServedModel) -> None:
    """Kill the process of an engine; return once the control layer has noticed."""
    assert isinstance(loaded.engine, RemoteEngine)
    noticed, tell = trio.Event(), model.batcher.on_lost

    def note(error: EngineLostError) -> None:
        tell(error)
        noticed.set()

    model.batcher.on_lost = note
    os.kill(loaded.engine.process.popen.pid, signal.SIGKILL)
    await noticed.wait()
    model.batcher.on_lost = tell


async def run(launcher: Launcher, body: str) -> Any:
    """Run a program alone, and return its result."""
    return json.loads(await launcher.prepare(program_of(body), {}).run())


async def generate(launcher: Launcher, count: int) -> tuple[list[int], list[Any]]:
    """Run as many programs at once; return where each was, and its tokens."""
    program = program_of(GENERATE, parameters="number: int")
    instances = [launcher.prepare(program, {"number": n}) for n in range(count)]
    found = dict[int, Any]()

    async def keep(number: int) -> None:
        found[number] = json.loads(await instances[number].run())

    async with trio.open_nursery() as nursery:
        for number, instance in enumerate(instances):
            nursery.start_soon(keep, number)
            assert await instance.session.outbox.take() == ["placed"]
        for instance in instances:
            await instance.session.inbox.put("go on")
    places = [instance.session.models["small"].number for instance in instances]
    return places, [found[number] for number in range(count)]


async def test_programs_are_spread_and_sample_what_they_would_on_one_engine(
    alone: Sequence[LoadedEngine],
    both: Sequence[LoadedEngine],
    language: LinkedComponent,
) -> None:
    async with launching(alone, language) as launcher:
        _, expected = await generate(launcher, 6)
    async with launching(both, language) as launcher:
        places, found = await generate(launcher, 6)
        assert places == [0, 1, 0, 1, 0, 1]
        assert found == expected
        assert len({tuple(tokens) for tokens in found}) > 1
        assert all(model.batcher.num_steps for model in members(launcher))


async def test_a_program_goes_on_where_one_on_the_other_replica_stopped(
    both: Sequence[LoadedEngine], language: LinkedComponent
) -> None:
    async with launching(both, language) as launcher:
        first, second = members(launcher)
        story = await run(launcher, TELLS_A_STORY)
        assert len(first.exports) == 1
        first.num_inferlets += 1000
        assert await run(launcher, GOES_ON) == story
        assert await run(launcher, GOES_ON) == story
        assert second.batcher.num_steps > 0
        assert second.shared_exports.num_copied == 1, "the copy is found"
        first.num_inferlets -= 1000


async def test_the_loss_of_one_engine_is_told_to_its_inferlets_alone(
    both: Sequence[LoadedEngine], language: LinkedComponent
) -> None:
    async with launching(both, language) as launcher:
        holding = [launcher.prepare(program_of(HOLDS), {}) for _ in range(4)]
        results = dict[str, Any]()

        async def keep(instance: Instance) -> None:
            results[instance.instance_id] = json.loads(await instance.run())

        async with trio.open_nursery() as nursery:
            for instance in holding:
                nursery.start_soon(keep, instance)
                assert await instance.session.outbox.take() == ["filled"]
            first, second = members(launcher)
            await kill_engine(both[1], second)
            assert second.replicas.state == "ready"
            next_one = launcher.prepare(program_of("return 1"), {}).session
            assert next_one.model("") is first
            await next_one.close()
            for instance in holding:
                await instance.session.inbox.put("go on")
        for instance in holding:
            result = results[instance.instance_id]
            if instance.session.models["small"] is second:
                assert "the engine of small (replica 1) was lost" in result
            else:
                assert len(result) == 2, "two tokens"
        assert second.num_inferlets == first.num_inferlets == 0
        await second.batcher.wait_restored()
        assert second.state == "ready"
        first.num_inferlets += 1000
        assert len(await run(launcher, TELLS_A_STORY)) == 6
        assert len(second.exports) == 1
        first.num_inferlets -= 1000


async def test_an_export_that_is_lost_is_lost_on_all_replicas(
    both: Sequence[LoadedEngine], language: LinkedComponent
) -> None:
    async with launching(both, language) as launcher:
        first, second = members(launcher)
        await run(launcher, TELLS_A_STORY)
        first.num_inferlets += 1000
        await run(launcher, GOES_ON)
        assert second.shared_exports.num_copies == 1
        await kill_engine(both[0], first)
        with pytest.raises(GuestFailedError) as caught:
            await run(launcher, GOES_ON)
        assert "story" in caught.value.message
        assert second.shared_exports.num_copies == 0
        first.num_inferlets -= 1000
        await first.batcher.wait_restored()
