"""Runs a world beside a test that is not asynchronous: a state machine steps by plain calls."""

from __future__ import annotations

import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pie_trio.control.device_steps import DeviceSteps
from pie_trio.errors import EngineError
from pie_trio.inference.fake import FakeEngine
from tests.control.engines import TIME_LIMIT_SECONDS
from tests.control.guests import World, open_world

if TYPE_CHECKING:
    from collections.abc import Callable

    from pie_trio.engine_api import Batch, BatchResult, Engine, ForwardRequest

T = TypeVar("T")


class ManualDevice:
    """A device each of whose calls lasts until the test lets it go."""

    error = None

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._steps, self._turn = DeviceSteps(engine), trio.Lock()
        self.is_busy = self.is_open = False
        self._released = trio.Event()

    async def execute(self, batch: Batch, *, is_here: bool) -> BatchResult:
        if is_here:
            return self._steps.execute(batch)
        async with self._turn:
            return await self.run(partial(self._steps.execute, batch))

    async def restore(self) -> None:
        pass

    def watch(self, on_lost: Callable[[], None]) -> None:
        pass

    async def run(self, call: Callable[[], T]) -> T:
        self.is_busy, self._released = True, trio.Event()
        with trio.CancelScope(shield=True):
            if self.is_open:
                await trio.lowlevel.checkpoint()
            else:
                await self._released.wait()
        self.is_busy = False
        return call()

    def let_go(self) -> None:
        """Let the call that waits, if one does, go on."""
        self._released.set()

    def open(self) -> None:
        """Hold no call any more."""
        self.is_open = True
        self.let_go()


class WatchedEngine(FakeEngine):
    """Says what is wrong with the batches that it gets, and fails when it is told to.

    A step that fails leaves garbage where it was to write.

    Attributes:
        failure: What the next step fails with.
        failed_steps: Numbers of the steps that have failed, from 1.
        wrong: What two requests of one batch had to do with each other, and must not have.
    """

    def __init__(self, **details: Any) -> None:
        super().__init__(**details)
        self.failure: Exception | None = None
        self.failed_steps: set[int] = set()
        self.wrong: list[str] = []

    def execute(self, batch: Batch) -> BatchResult:
        self.wrong += _conflicts(batch, self.info.page_size)
        if self.failure is None:
            return super().execute(batch)
        self.batches.append(batch)
        self.failed_steps.add(len(self.batches))
        self._scribble(batch)
        failure, self.failure = self.failure, None
        raise failure

    def _scribble(self, batch: Batch) -> None:
        size = self.info.page_size
        slots = [
            slot for copy in batch.copies for slot in _span(copy.target * size, size)
        ]
        for request in batch.forwards:
            start = request.kv_len - len(request.token_ids)
            slots += [
                int(request.page_ids[i // size]) * size + i % size
                for i in range(start, request.kv_len)
            ]
            for spec in request.outputs:
                if spec.store is not None:
                    self.store_tokens(spec.store, np.full_like(spec.store, 255))
        pages = np.unique(np.array(slots, np.int32) // size)
        if len(pages):
            data = self.read_pages(pages).view(np.uint64).reshape(len(pages), -1, size)
            for slot in slots:
                data[np.searchsorted(pages, slot // size), :, slot % size] = 12345
            flat = data.reshape(len(pages), -1).view(np.uint8)
            self.write_pages(pages, flat)


class Beside:
    """A world on a thread of its own; its time stands still until it is told to jump."""

    def __init__(self, **details: Any) -> None:
        self.clock = MockClock()
        self._details = details
        self._is_ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._is_ready.wait(TIME_LIMIT_SECONDS)
        if self._error is not None:
            raise self._error

    world: World
    device: ManualDevice

    def call(self, function: Callable[[], T]) -> T:
        """Return what a function returns there, once nothing moves any more."""

        async def work() -> T:
            found = function()
            await wait_all_tasks_blocked()
            return found

        try:
            return trio.from_thread.run(work, trio_token=self._token)
        except (trio.Cancelled, trio.RunFinishedError):
            self.close()  # raises what has ended it
            raise

    def close(self) -> None:
        """End the world, which looks whether everything is back."""
        if self._thread.is_alive():
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._end)
            self._thread.join(TIME_LIMIT_SECONDS)
            assert not self._thread.is_alive(), "the world does not end"
        if self._error is not None:
            raise self._error

    def _end(self) -> None:
        self.device.open()
        self._closing.set()

    def _run(self) -> None:
        try:
            trio.run(self._serve, clock=self.clock)
        except BaseException as error:  # noqa: BLE001 - the test's thread raises it
            self._error = error
        self._is_ready.set()

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._closing = trio.Event()
        self.device = ManualDevice(self._details["engine"])
        async with open_world(device=self.device, **self._details) as self.world:
            self._is_ready.set()
            await self._closing.wait()


def _conflicts(batch: Batch, page_size: int) -> list[str]:
    """Say what requests do to each other's places."""
    wrong: list[str] = []
    pages = [set(request.page_ids.tolist()) for request in batch.forwards]
    writes = [_written(request, page_size) for request in batch.forwards]
    stores = [_stored(request) for request in batch.forwards]
    reads = [_read_embeds(request) for request in batch.forwards]
    for i in range(len(pages)):
        for j in range(len(pages)):
            if i != j and writes[i] & pages[j]:
                wrong.append(f"forward {j} uses a page that forward {i} writes")
            if i != j and stores[i] & (stores[j] | reads[j]):
                wrong.append(f"forward {j} uses an embed that forward {i} writes")
    for copy in batch.copies:
        # One that was named twice is written under both names: the copy is made before.
        if any(
            copy.source in written and copy.target not in used
            for written, used in zip(writes, pages, strict=True)
        ):
            wrong.append("a forward writes the source of another's copy")
        if sum(copy.target in used for used in pages) > 1:
            wrong.append("two forwards use the target of a copy")
    by_target: dict[int, list[tuple[int, int]]] = {}
    for copy in batch.copies:
        by_target.setdefault(copy.target, []).append((copy.source, copy.count))
    for target, copies in by_target.items():
        # A page of its own for the writer, and then what is copied into it.
        if len(copies) > 2 or (len(copies) == 2 and copies[0][1] != page_size):
            wrong.append("two commands copy into one page")
        if any(source in by_target and source != target for source, _ in copies):
            wrong.append("a copy reads what another writes")
    return wrong


def _written(request: ForwardRequest, page_size: int) -> set[int]:
    start = request.kv_len - len(request.token_ids)
    last = (request.kv_len - 1) // page_size
    return set(request.page_ids[start // page_size : last + 1].tolist())


def _stored(request: ForwardRequest) -> set[int]:
    specs = [spec.store for spec in request.outputs if spec.store is not None]
    return {slot for store in specs for slot in store.tolist()}


def _read_embeds(request: ForwardRequest) -> set[int]:
    slots = request.input_slots
    return set() if slots is None else {slot for slot in slots.tolist() if slot >= 0}


def _span(first: int, count: int) -> range:
    return range(first, first + count)


def told_to_fail(*, is_bug: bool) -> Exception:
    """Return what a step fails with: an error of the engine's, or a bug of its."""
    return RuntimeError("a bug") if is_bug else EngineError("told to fail")
