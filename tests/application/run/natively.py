"""Programs that run in this process, over a fake engine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import trio

from inferlet_py._host import connect
from inferlet_py._models import forget_models
from inferlet_py._program import (
    SourceModule,
    compile_module,
    find_inferlet,
    load_modules,
)
from pie_trio.application.host.instance_log import InstanceLog
from pie_trio.application.host.session import Launch, Session
from pie_trio.application.run.native_host import make_native_host
from pie_trio.application.services import Services
from pie_trio.application.serving import LoadedEngine, open_models
from pie_trio.config import ControlConfig, InstanceLimits
from pie_trio.inference.fake import FakeTokenizer

if TYPE_CHECKING:
    from pie_trio.application.lifecycle.programs import SourceProgram
    from pie_trio.inference.fake import FakeEngine

__all__ = ["run_natively"]


async def run_natively(
    engine: FakeEngine, program: SourceProgram
) -> tuple[Any, list[str | bytes]]:
    """Run a program in another thread of this process; return its result and what it has sent."""
    loaded, limits = LoadedEngine(engine, FakeTokenizer()), InstanceLimits()
    async with open_models([loaded], ControlConfig(), limits) as models:
        launch, log = Launch("native", "{}"), InstanceLog(max_bytes=1000)
        session = Session(launch, Services(models), limits, log)
        host = make_native_host(session, trio.lowlevel.current_trio_token())

        def run() -> str:
            module = SourceModule("native_program.py", program.modules["app.py"])
            compiled = SourceModule(module.path, module.text, compile_module(module))
            connect(host)
            try:
                return find_inferlet(load_modules(module.path, [compiled])).run(host)
            finally:
                connect(None)
                forget_models()

        try:
            result = json.loads(await trio.to_thread.run_sync(run))
        finally:
            await session.close()
            for model in models.values():
                assert model.pool.num_free == model.pool.num_pages, "a page was lost"
                model.pool.check()
        return result, await session.outbox.take()
