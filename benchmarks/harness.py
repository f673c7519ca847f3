"""What the benchmarks share: a launcher over an engine that costs nothing, and statistics."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import platform
import statistics
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pie_trio.application.lifecycle.instances import (
    Launcher,
    link_language,
    open_launcher,
)
from pie_trio.application.lifecycle.programs import SourceProgram
from pie_trio.application.run.setup import prepare_language
from pie_trio.application.serving import LoadedEngine, open_models
from pie_trio.application.wasm.compile_cache import CompileCache
from pie_trio.application.wasm.runtime import WasmRuntime
from pie_trio.config import ControlConfig, InstanceLimits, WasmConfig
from pie_trio.inference.fake import FakeEngine, FakeTokenizer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence


def describe_machine() -> str:
    """Return the machine and the versions that decide the figures."""
    names = ("trio", "wasmtime", "componentize-py", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores {platform.machine()}, Python {platform.python_version()}, "
        f"{versions}; load {load:.1f}; command: {' '.join(sys.argv)}"
    )


def make_program(text: str) -> SourceProgram:
    """Return a program of one module."""
    return SourceProgram(
        "bench", "app.py", {"app.py": text}, hashlib.sha256(text.encode()).hexdigest()
    )


def spread(values: Sequence[float]) -> str:
    """Return median and quartiles."""
    if len(values) < 4:
        return f"{statistics.median(values):.2f}"
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} [{low:.2f}-{high:.2f}]"


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@asynccontextmanager
async def open_fake_launcher(
    *, num_warm: int = 0, wasm: WasmConfig | None = None
) -> AsyncGenerator[Launcher]:
    """Launch programs over a fake engine, so that the host's own cost is what is measured."""
    wasm = wasm or WasmConfig()
    limits = InstanceLimits()
    engine = LoadedEngine(FakeEngine(), FakeTokenizer())
    path = prepare_language(wasm)
    with WasmRuntime(wasm, CompileCache(wasm.cache_directory)) as runtime:
        language = link_language(runtime, path)
        async with (
            open_models([engine], ControlConfig(), limits) as models,
            open_launcher(language, models, limits, num_warm=num_warm) as launcher,
        ):
            yield launcher


def make_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser for a benchmark's options."""
    return argparse.ArgumentParser(description=description)
