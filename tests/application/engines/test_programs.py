"""Programs whose engine ends while they run."""

from __future__ import annotations

import json
import os
import signal
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import trio

from pie_trio.application.engines.device import open_process_device
from pie_trio.config import EngineProcessConfig
from pie_trio.errors import GuestFailedError
from pie_trio.inference.fake import fake_continuation
from tests.application.conftest import program_of
from tests.application.engines.openers import start_fake
from tests.control.engines import TIME_LIMIT_SECONDS

if TYPE_CHECKING:
    from pathlib import Path

    from pie_trio.application.lifecycle.instances import Instance
    from tests.application.conftest import OpenLauncher
    from tests.application.engines.openers import Brake

QUICK = EngineProcessConfig(first_delay_seconds=0.01)

GENERATE = """
async with Context() as context:
    await context.fill("hello")
    return await context.generate(max_tokens=4, stop_tokens=[]).tokens()
"""
STEPWISE = GENERATE.replace("max_tokens", "stepwise=True, max_tokens")
# Whoever has pages already loses them, also if it asks for nothing while the engine is away.
FILL_FIRST = """    await context.forward()
    await send("filled")
    await receive()
    return await"""
HOLDS = """
grammar = await Processor.create(grammar=Grammar.regex("[ab]+"))
async with Context() as context:
    await context.fill("hello")
    await context.forward()
    await send("filled")
    await receive()
    told = []
    try:
        await context.fill(" more")
        await context.forward()
    except EngineLostError as error:
        told.append(str(error))
    try:
        grammar.accept([97])
    except EngineLostError as error:
        told.append("grammar")
async with Context() as context:
    await context.fill("hello")
    return [told, await context.generate(max_tokens=4, stop_tokens=[]).tokens()]
"""
HELLO = [256, *b"hello"]


async def test_inferlets_are_told_and_the_next_launch_works(
    open_fake: OpenLauncher, brake: Brake, tmp_path: Path
) -> None:
    engine = start_fake(tmp_path, config=QUICK)
    failures: list[GuestFailedError] = []

    async def fail(instance: Instance) -> None:
        with pytest.raises(GuestFailedError) as caught:
            await instance.run()
        failures.append(caught.value)

    async def keep(instance: Instance, results: list[Any]) -> None:
        results.append(json.loads(await instance.run()))

    results: list[Any] = []
    with closing(engine), trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_fake(
            engine=engine, open_device=lambda _: open_process_device(engine)
        ) as launcher:
            async with trio.open_nursery() as nursery:
                idle = launcher.prepare(program_of(HOLDS), {})
                nursery.start_soon(keep, idle, results)
                bodies = [
                    body.replace("    return await", FILL_FIRST)
                    for body in (GENERATE, STEPWISE)
                ]
                busy = [launcher.prepare(program_of(body), {}) for body in bodies]
                for instance in busy:
                    nursery.start_soon(fail, instance)
                for instance in [idle, *busy]:
                    assert await instance.session.outbox.take() == ["filled"]
                brake.set()
                for instance in busy:
                    await instance.session.inbox.put("go on")
                await trio.to_thread.run_sync(brake.wait_held)
                os.kill(engine.process.popen.pid, signal.SIGKILL)
                await idle.session.inbox.put("go on")
            assert [failure.kind for failure in failures] == ["EngineLostError"] * 2
            (told, tokens) = results[0]
            assert "the engine of fake was lost" in told[0]
            assert told[1] == "grammar"
            assert tokens == fake_continuation(HELLO, 4)
            for body in (GENERATE, STEPWISE):
                again = await launcher.prepare(program_of(body), {}).run()
                assert json.loads(again) == fake_continuation(HELLO, 4)
