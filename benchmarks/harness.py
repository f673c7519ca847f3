"""What the benchmarks share: a launcher over an engine that costs nothing, and statistics."""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib.metadata
import os
import platform
import statistics
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pie_trio.application.lifecycle.instances import (
    Launcher,
    link_language,
    open_launcher,
)
from pie_trio.application.lifecycle.programs import SourceProgram
from pie_trio.application.run.setup import prepare_language
from pie_trio.application.services import Services
from pie_trio.application.serving import LoadedEngine, open_models
from pie_trio.application.wasm.compile_cache import CompileCache
from pie_trio.application.wasm.runtime import LinkedComponent, WasmRuntime
from pie_trio.config import ControlConfig, InstanceLimits, WasmConfig
from pie_trio.control.device_thread import OpenDevice, open_device_thread
from pie_trio.engine_api import Batch, BatchResult, Engine, OutputResult, OutputSpec
from pie_trio.inference.fake import FakeEngine, FakeTokenizer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from numpy.typing import NDArray

    from pie_trio.engine_api import Tokenizer


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


def memory_bytes() -> int:
    """Return the proportional set size of this process.

    The resident size would count a page of the component's image once for each guest that maps
    it, though there is one such page in memory.
    """
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel reports no Pss")


class NullEngine(FakeEngine):
    """An engine that answers at once with the same token, so that only the host costs."""

    def __init__(self, *, num_pages: int = 4096) -> None:
        super().__init__(name="null", num_pages=num_pages)
        self.sizes: list[int] = []  # of each step

    def execute(self, batch: Batch) -> BatchResult:
        """Return a token for each output row."""
        self.sizes.append(len(batch.forwards))
        return BatchResult(
            tuple(
                tuple(self._answer(spec) for spec in forward.outputs)
                for forward in batch.forwards
            )
        )

    def read_pages(self, page_ids: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Return nothing of each page."""
        return np.empty((len(page_ids), 0), np.uint8)

    def write_pages(self, page_ids: NDArray[np.int32], data: NDArray[np.uint8]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    @staticmethod
    def _answer(spec: OutputSpec) -> OutputResult:
        num_rows, nothing = len(spec.rows), np.empty(0, np.float32)
        top = (num_rows, spec.top_k) if spec.top_k else 0
        return OutputResult(
            token_ids=np.ones(num_rows, np.int32),
            top_ids=np.ones(top, np.int32),
            top_probs=np.ones(top, np.float32),
            logprobs=nothing,
            entropy=nothing,
            logits=nothing,
            hidden=nothing,
        )


@asynccontextmanager
async def open_bare_launcher(
    *,
    num_warm: int = 0,
    wasm: WasmConfig | None = None,
    link: Callable[[WasmRuntime, Path], LinkedComponent] = link_language,
    engine: Engine | None = None,
    tokenizer: Tokenizer | None = None,
    control: ControlConfig | None = None,
    open_device: OpenDevice = open_device_thread,
) -> AsyncGenerator[Launcher]:
    """Launch programs over an engine that costs nothing.

    Args:
        num_warm: Guests to instantiate ahead of time.
        wasm: The sandbox.
        link: Connects the language component with host functions.
        engine: Instead of the one that costs nothing.
        tokenizer: That belongs to it.
        control: Policies and limits of batches.
        open_device: Opens what steps the engine.
    """
    wasm = wasm or WasmConfig()
    limits = InstanceLimits()
    loaded = LoadedEngine(
        engine or NullEngine(), tokenizer or FakeTokenizer(), open_device
    )
    path = prepare_language(wasm)
    with WasmRuntime(wasm, CompileCache(wasm.cache_directory)) as runtime:
        language = link(runtime, path)
        gc.collect()
        gc.freeze()  # as `pie run` does
        async with (
            open_models([loaded], control or ControlConfig(), limits) as models,
            open_launcher(
                language, Services(models), limits, num_warm=num_warm
            ) as launcher,
        ):
            yield launcher


def make_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser for a benchmark's options."""
    return argparse.ArgumentParser(description=description)
