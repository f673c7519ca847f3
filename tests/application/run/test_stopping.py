"""A native program is cancelled as one in Wasm is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from inferlet_py._host import connect
from inferlet_py._models import forget_models
from inferlet_py._program import (
    SourceModule,
    describe_failure,
    find_inferlet,
    load_modules,
)
from pie_trio.application.host.instance_log import InstanceLog
from pie_trio.application.host.session import Launch, Session
from pie_trio.application.run.native_host import make_native_host
from pie_trio.application.services import Services
from pie_trio.application.serving import LoadedEngine, open_models
from pie_trio.config import ControlConfig, InstanceLimits
from pie_trio.errors import CancelledError
from pie_trio.inference.fake import FakeEngine, FakeTokenizer
from tests.application.conftest import program_of

if TYPE_CHECKING:
    from pie_trio.application.host.instance_log import LogLine

LIMIT_SECONDS = 60
WAITS = {
    "a sleep": "await sleep(1e6)",
    "a message": "await receive()",
    "an answer": "while True: await ctx.sample(Greedy())",
    "tasks": (
        "async with open_nursery() as nursery:\n"
        "        nursery.start_soon(sleep, 1e6)\n"
        "        await receive()"
    ),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
async def test_a_native_program_cleans_up_wherever_it_waits(wait: str) -> None:
    program = program_of(
        "ctx = Context()\n"
        "await ctx.fill('x' * 40)\n"
        "await ctx.forward()\n"
        "log('here')\n"
        "try:\n"
        f"    {wait}\n"
        "finally:\n"
        "    with CancelScope(shield=True):\n"
        "        await ctx.sample(Greedy())\n"
        "        await sleep(0.01)\n"
        "    log('cleaned up')"
    )
    loaded, limits = LoadedEngine(FakeEngine(), FakeTokenizer()), InstanceLimits()
    here = trio.Event()

    def note(line: LogLine) -> None:
        if line.text == "here":
            here.set()

    async with open_models([loaded], ControlConfig(), limits) as models:
        log = InstanceLog(max_bytes=1000, on_line=note)
        session = Session(Launch("native", "{}"), Services(models), limits, log)
        host = make_native_host(session, trio.lowlevel.current_trio_token())
        failures: list[str] = []

        def run() -> None:
            source = SourceModule("native_program.py", program.modules["app.py"])
            connect(host)
            try:
                find_inferlet(load_modules(source.path, [source])).run(host)
            except BaseException as error:  # noqa: BLE001  # it is what is tested
                failures.append(describe_failure(error)[0])
            finally:
                connect(None)
                forget_models()

        try:
            with trio.fail_after(LIMIT_SECONDS):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.to_thread.run_sync, run)
                    await here.wait()
                    session.stop(CancelledError("the test wants it"))
        finally:
            await session.close()
    assert failures == ["Cancelled"]
    texts = [line.text for line in log.lines]
    assert (texts[0], texts[-1]) == ("here", "cleaned up")
