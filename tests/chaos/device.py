"""A device in virtual time whose steps fail, and whose engine is lost, when it is told to."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import trio

from pie_trio.control.device_steps import DeviceSteps
from pie_trio.errors import EngineError, EngineLostError
from pie_trio.inference.fake import FakeEngine
from pie_trio.inference.processors.table import ProcessorTable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from pie_trio.engine_api import Batch, BatchResult, Engine
    from pie_trio.inference.processors.processor import Processor

T = TypeVar("T")

STEP_SECONDS, RESTORE_SECONDS = 0.01, 0.3


class ChaosProcessors(ProcessorTable):
    """Processors that are there as long as their engine is.

    Attributes:
        error: What all calls raise while there is none.
    """

    error: EngineError | None = None

    def _get(self, processor: int) -> Processor:
        self._check()
        return super()._get(processor)

    def _add(self, processor: int, made: Processor) -> None:
        self._check()
        super()._add(processor, made)

    def _check(self) -> None:
        if self.error is not None:
            raise EngineLostError("fake", "it was told to")


class ChaosEngine(FakeEngine):
    """Can lose its memory: what is read from it is garbage then, and its processors are gone."""

    def __init__(self, **details: Any) -> None:
        super().__init__(**details)
        table = self._processors
        self._processors = self.processors = ChaosProcessors(
            table._vocab_size, table._make_vocabulary
        )

    def scramble(self, seed: int) -> None:
        """Fill the memory with what nobody has written."""
        random = np.random.default_rng(seed)
        for memory in (self._store, self._embeds):
            memory[...] = random.integers(0, 2**63, memory.shape, np.uint64)
        self.processors.close()


class ChaosDevice:
    """Steps an engine; each call takes a while of trio's time.

    Attributes:
        num_failing: Of the next steps.
        error: Set from when the engine is lost until there is another one.
        on_fault: Told the batch of a step that fails; None where the engine is lost.
    """

    def __init__(self, engine: ChaosEngine) -> None:
        self.engine = engine
        engine._on_step = self._fail_if_told
        self._steps, self._turn = DeviceSteps(engine), trio.Lock()
        self.num_failing = self.num_lost = 0
        self.error: EngineError | None = None
        self.on_fault: Callable[[Batch | None], None] = lambda _: None
        self._on_lost: Callable[[], None] = lambda: None

    async def execute(self, batch: Batch, *, is_here: bool) -> BatchResult:
        async with self._turn:
            return await self.run(partial(self._steps.execute, batch))

    def _fail_if_told(self, batch: Batch) -> None:
        """Fail inside of the engine, so that the steps after this one know that it has failed."""
        if self.num_failing:
            self.num_failing -= 1
            self.on_fault(batch)
            raise EngineError("the step failed, as it was told to")

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
        self.error = self.engine.processors.error = None

    def watch(self, on_lost: Callable[[], None]) -> None:
        self._on_lost = on_lost

    def lose(self) -> None:
        """End the engine, with whatever is in its memory."""
        if self.error is not None:
            return
        self.num_lost += 1
        self.on_fault(None)
        self.engine.scramble(self.num_lost)
        self.error = EngineLostError(self.engine.info.name, "it was told to")
        self.engine.processors.error = self.error
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
