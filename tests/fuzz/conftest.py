"""How long to fuzz, and the language component whose calls are watched."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from pie_trio.application.lifecycle.instances import link_language
from pie_trio.application.run.setup import prepare_language
from pie_trio.application.wasm.compile_cache import CompileCache
from pie_trio.application.wasm.runtime import WasmRuntime
from pie_trio.config import WasmConfig
from tests.application.conftest import language, open_fake
from tests.application.server.conftest import open_server
from tests.fuzz.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Generator

    from pie_trio.application.wasm.runtime import LinkedComponent

__all__ = ["language", "open_fake", "open_server"]  # fixtures of others


@pytest.fixture(scope="session")
def fuzz_seconds() -> float:
    """How long all of the fuzzing may take; 0 for a few cases, which are always the same."""
    return float(os.environ.get("PIE_FUZZ_SECONDS", "0"))


@pytest.fixture(scope="session")
def first_seed() -> int:
    """With which random cases begin, where they are not always the same."""
    return int(os.environ.get("PIE_FUZZ_SEED", "0"))


@pytest.fixture(scope="module")
def watched() -> Generator[tuple[LinkedComponent, Watch]]:
    """The language component over host functions that are watched."""
    config, watch = WasmConfig(), Watch()
    path = prepare_language(config)
    with WasmRuntime(config, CompileCache(config.cache_directory)) as runtime:
        yield link_language(runtime, path, adapt=watch.adapt), watch
