"""The language component, built and compiled once, and launchers over a fake engine."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from pie_trio.application.lifecycle.instances import (
    Launcher,
    link_language,
    open_launcher,
)
from pie_trio.application.lifecycle.programs import SourceProgram
from pie_trio.application.run.setup import prepare_language
from pie_trio.application.services import open_services
from pie_trio.application.serving import LoadedEngine, open_models
from pie_trio.application.wasm.compile_cache import CompileCache
from pie_trio.application.wasm.runtime import LinkedComponent, WasmRuntime
from pie_trio.config import ControlConfig, InstanceLimits, WasmConfig
from pie_trio.control.device_thread import OpenDevice, open_device_thread
from pie_trio.inference.fake import FakeEngine, FakeTokenizer

if TYPE_CHECKING:
    from pie_trio.engine_api import Engine, Tokenizer

OpenLauncher = Callable[..., AbstractAsyncContextManager[Launcher]]


@pytest.fixture(scope="session")
def language() -> Generator[LinkedComponent]:
    """The language component; the first test that asks for it may build it."""
    config = WasmConfig()
    path = prepare_language(config)
    with WasmRuntime(config, CompileCache(config.cache_directory)) as runtime:
        yield link_language(runtime, path)


@pytest.fixture
def open_fake(language: LinkedComponent) -> OpenLauncher:
    """Opens launchers over a fake engine."""

    @asynccontextmanager
    async def open_it(
        *,
        engine: Engine | None = None,
        num_replicas: int = 1,
        open_device: OpenDevice = open_device_thread,
        tokenizer: Tokenizer | None = None,
        num_warm: int = 0,
        control: ControlConfig | None = None,
        slice_ticks: int | None = None,
        services: Mapping[str, Any] | None = None,
        max_instances: int | None = None,
        **limits: Any,
    ) -> AsyncGenerator[Launcher]:
        ordinary = language.runtime.slice_ticks
        language.runtime.slice_ticks = slice_ticks or ordinary
        engines = [engine or FakeEngine() for _ in range(num_replicas)]
        loaded = [
            LoadedEngine(one, tokenizer or FakeTokenizer(), open_device)
            for one in engines
        ]
        instance_limits = InstanceLimits(**limits)
        async with (
            open_models(loaded, control or ControlConfig(), instance_limits) as models,
            open_services(models, **(services or {})) as offered,
            open_launcher(
                language,
                offered,
                instance_limits,
                num_warm=num_warm,
                max_instances=max_instances,
            ) as launcher,
        ):
            try:
                yield launcher
            finally:
                language.runtime.slice_ticks = ordinary
            for fake in engines:
                if isinstance(fake, FakeEngine):
                    assert fake.num_processors == 0, "a processor was lost"
            for model in [one for all_ in models.values() for one in all_.replicas]:
                assert model.pool.num_free == model.pool.num_pages, "a page was lost"
                model.pool.check()

    return open_it


HEADER = "from inferlet_py import *\n\n@inferlet\nasync def main({parameters}):\n"


def program_of(body: str, *, parameters: str = "") -> SourceProgram:
    """Return a program whose main has this body."""
    lines = "".join(f"    {line}\n" for line in body.strip("\n").splitlines())
    text = HEADER.format(parameters=parameters) + lines
    return SourceProgram("test", "app.py", {"app.py": text}, str(hash(text)))
