"""A device in virtual time whose steps fail, and whose engine is lost, when it is told to."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import trio

from pie_trio.errors import EngineError, EngineLostError
from pie_trio.inference.fake import FakeEngine

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from pie_trio.engine_api import Batch, BatchResult, Engine

T = TypeVar("T")

STEP_SECONDS, RESTORE_SECONDS = 0.01, 0.3


class ChaosEngine(FakeEngine):
    """Can lose its memory: what is read from it afterwards is garbage."""

    def scramble(self, seed: int) -> None:
        """Fill the memory with what nobody has written."""
        random = np.random.default_rng(seed)
        for memory in (self._store, self._embeds):
            memory[...] = random.integers(0, 2**63, memory.shape, np.uint64)


class ChaosDevice:
    """Steps an engine; each call takes a while of trio's time.

    Attributes:
        num_failing: Of the next steps.
        error: Set from when the engine is lost until there is another one.
    """

    def __init__(self, engine: ChaosEngine) -> None:
        self.engine = engine
        self.num_failing = self.num_lost = 0
        self.error: EngineError | None = None
        self._on_lost: Callable[[], None] = lambda: None

    async def execute(self, batch: Batch, *, is_here: bool) -> BatchResult:
        return await self.run(partial(self._step, batch))

    def _step(self, batch: Batch) -> BatchResult:
        if self.num_failing:
            self.num_failing -= 1
            raise EngineError("the step failed, as it was told to")
        return self.engine.execute(batch)

    async def run(self, call: Callable[[], T]) -> T:
        if self.error is not None:
            raise self.error
        num_lost = self.num_lost
        with trio.CancelScope(shield=True):
            await trio.sleep(STEP_SECONDS)
        if self.num_lost != num_lost:
            raise EngineLostError(self.engine.info.name, "it was told to")
        return call()

    async def restore(self) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(RESTORE_SECONDS)
        self.error = None

    def watch(self, on_lost: Callable[[], None]) -> None:
        self._on_lost = on_lost

    def lose(self) -> None:
        """End the engine, with whatever is in its memory."""
        if self.error is not None:
            return
        self.num_lost += 1
        self.engine.scramble(self.num_lost)
        self.error = EngineLostError(self.engine.info.name, "it was told to")
        self._on_lost()


class ChaosDevices:
    """Opens the one device. As ``open_device`` of a loaded engine.

    Attributes:
        device: Once it is open.
    """

    device: ChaosDevice

    @asynccontextmanager
    async def open(self, engine: Engine) -> AsyncGenerator[Any]:
        assert isinstance(engine, ChaosEngine)
        self.device = ChaosDevice(engine)
        yield self.device
