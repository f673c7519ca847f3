"""The wasmtime engine: configuration, time slices, compiled components.

One runtime a process. Its engine is shared by all guests; a component is compiled once for a
host and mapped from the cache after that.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wasmtime import Config, Engine, component
from wasmtime import _ffi as ffi

from pie_trio.application.wasm.linking import HostInterface, HostLinker
from pie_trio.application.wasm.wasi import make_wasi, wasi_versions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import TracebackType

    from pie_trio.application.wasm.compile_cache import CompileCache
    from pie_trio.application.wasm.fiber import Fiber
    from pie_trio.config import WasmConfig

__all__ = ["LinkedComponent", "WasmRuntime", "make_engine"]


@dataclass(frozen=True)
class LinkedComponent:
    """A compiled component and the host functions that its instances will call."""

    runtime: WasmRuntime
    component: component.Component
    linker: HostLinker


class WasmRuntime:
    """Compiles components and tells which guest is running. A context manager.

    While it is open a thread advances the engine's epoch, which is what preempts a guest that
    computes without calling the host.

    Attributes:
        current: The fiber that is being polled, whose host calls are answered. There is one
            thread, so there is one at a time.
        poll: Runs a fiber until it waits or is done. A profile puts itself in between.
    """

    def __init__(self, config: WasmConfig, cache: CompileCache) -> None:
        self.config = config
        self.engine = make_engine()
        self.slice_ticks = config.slice_ticks
        self._cache = cache
        self.current: Fiber | None = None
        self.poll: Callable[[Any], bool] = ffi.wasmtime_call_future_poll
        self._is_closed = threading.Event()
        self._ticker = threading.Thread(
            target=self._tick, name="pie-epoch", daemon=True
        )

    def __enter__(self) -> WasmRuntime:
        self._ticker.start()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._is_closed.set()
        self._ticker.join()

    def compile(self, path: Path) -> component.Component:
        """Return a compiled component, from the cache if it is there; else blocks for seconds."""
        return self._cache.load(self.engine, path)

    def link(
        self,
        compiled: component.Component,
        interfaces: Sequence[HostInterface],
        *,
        random_bytes: Callable[[int], bytes] = os.urandom,
        adapt: Callable[[list[HostInterface]], list[HostInterface]] = lambda w: w,
    ) -> LinkedComponent:
        """Connect a component's imports with WASI and with the given host functions.

        Args:
            compiled: The component.
            interfaces: Besides WASI.
            random_bytes: Where its random numbers come from.
            adapt: May put something between the component and WASI.
        """
        linker = HostLinker(self.engine, self._get_current)
        wasi = make_wasi(
            lambda: self._get_current().context,
            random_bytes,
            versions=wasi_versions(compiled.type.imports(self.engine)),
        )
        linker.define([*adapt(wasi), *interfaces])
        linker.trap_unknown_imports(compiled)
        return LinkedComponent(self, compiled, linker)

    def _get_current(self) -> Fiber:
        assert self.current is not None, (
            "host calls come from a fiber that is being polled"
        )
        return self.current

    def _tick(self) -> None:
        while not self._is_closed.wait(self.config.tick_seconds):
            self.engine.increment_epoch()


def make_engine() -> Engine:
    """Return a wasmtime engine that is configured for guests.

    Memory is allocated for each instance. The pooling allocator was measured: fresh slots cost
    more, and used ones, which save page faults, keep their memory (``benchmarks/LOG.md``).
    """
    result = Config()
    result.epoch_interruption = True
    return Engine(result)
