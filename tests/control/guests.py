"""Inferlets of the control layer, without sessions, in a time that jumps."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import trio
from trio.testing import MockClock

from pie_trio.config import ControlConfig
from pie_trio.control.commands import Command, Kind, Priority, embed_key
from pie_trio.control.device_steps import DeviceSteps
from pie_trio.control.dispatch import Batcher
from pie_trio.control.embeds import EmbedPool
from pie_trio.control.forwards import GuestForward, plan_forward
from pie_trio.control.page_table import PageTable
from pie_trio.control.pages import PagePool
from pie_trio.control.tenants import Tenant
from pie_trio.engine_api import NO_SLOT, OutputSpec, ProjectRequest, SamplerSpec
from pie_trio.inference.fake import FakeEngine
from tests.control.engines import Outcomes

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from pie_trio.control.device_thread import Device
    from pie_trio.engine_api import Batch, BatchResult, Engine

T = TypeVar("T")

PAGE_SIZE = 4
MAX_PAGES = 99
GREEDY = SamplerSpec()
LAST_TOKEN = -1
"""As a row: of the last token."""


class InlineDevice:
    """A device in trio's time: each call takes a while of it."""

    error = None

    def __init__(self, engine: Engine, step_seconds: float = 0.01) -> None:
        self.engine, self.step_seconds = engine, step_seconds
        self._steps, self._turn = DeviceSteps(engine), trio.Lock()

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
        with trio.CancelScope(shield=True):
            await trio.sleep(self.step_seconds)
        return call()


@dataclass
class World:
    """A model, and the inferlets on it."""

    engine: Engine
    pool: PagePool
    embeds: EmbedPool
    batcher: Batcher
    config: ControlConfig
    nursery: trio.Nursery
    outcomes: Outcomes = field(default_factory=Outcomes)
    guests: list[Guest] = field(default_factory=list["Guest"])
    next_token: int = 0

    def launch(self, **details: Any) -> Guest:
        guest = Guest(self, len(self.guests), **details)
        self.guests.append(guest)
        return guest

    def check(self) -> None:
        self.pool.check()
        self.embeds.check()

    @property
    def evicted(self) -> list[str]:
        return [guest.tenant.name for guest in self.guests if guest.error is not None]


class Guest:
    """An inferlet that knows its pages by numbers."""

    def __init__(
        self, world: World, age: int, *, on_pressure: Callable[[], bool] = lambda: False
    ) -> None:
        self.world = world
        self.table = PageTable(max_handles=MAX_PAGES, page_size=PAGE_SIZE)
        self.tenant = Tenant(
            f"g{age}",
            age,
            pages=self.table.values,
            on_pressure=on_pressure,
            on_evicted=self._on_evicted,
        )
        world.batcher.tenants[self.tenant] = None
        self.slots: list[int] = []
        self.error: Exception | None = None
        self.is_closed = False

    def allocate(self, count: int) -> list[int]:
        return self.adopt([self.world.pool.allocate() for _ in range(count)])

    def adopt(self, pages: Sequence[int]) -> list[int]:
        """Return handles for pages of which it was made an owner."""
        first = max(self.table, default=-1) + 1
        for handle, page in enumerate(pages, first):
            self.table.add(handle, page)
        return list(range(first, first + len(pages)))

    def fork(self, handles: Sequence[int], other: Guest | None = None) -> list[int]:
        """Return handles for the contents of some of its own, or of another's."""
        pages = [(other or self).table.get(handle) for handle in handles]
        for page in pages:
            self.world.pool.share(page)
        return self.adopt(pages)

    def release(self, handles: Sequence[int]) -> None:
        for handle in handles:
            self.world.pool.release(self.table.remove(handle))

    def allocate_embed(self) -> int:
        slot = self.world.embeds.allocate()
        self.slots.append(slot)
        return slot

    def forward(
        self,
        tokens: Sequence[int],
        handles: Sequence[int],
        *,
        start: int = 0,
        store: int | None = None,
        input_slots: Sequence[int] | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> int:
        """Submit a forward that samples greedily after the last token; return its number."""
        world, count = self.world, len(tokens)
        row = np.array([count - 1], np.int32)
        stored = None if store is None else np.array([store], np.int32)
        wanted = GuestForward(
            token_ids=np.array(tokens, np.int32),
            positions=np.arange(start, start + count, dtype=np.int32),
            pages=list(handles),
            start=start,
            outputs=(OutputSpec(row, GREEDY, store=stored),),
            input_slots=None
            if input_slots is None
            else np.array(input_slots, np.int32),
        )
        plan = plan_forward(
            wanted, self.table, world.pool, world.engine.info, world.config
        )
        written = [] if store is None else [store]
        read = [slot for slot in input_slots or () if slot != NO_SLOT]
        return self._submit(
            Kind.FORWARD,
            pages=plan.pages,
            writes=[*plan.writes, *map(embed_key, written)],
            forward=plan.request,
            copies=plan.copies,
            embeds=tuple({*written, *read}),
            priority=priority,
        )

    def project(self, slot: int, position: int) -> int:
        """Submit a projection that samples greedily; return its number."""
        row = np.zeros(1, np.int32)
        request = ProjectRequest(
            np.array([slot], np.int32),
            np.array([position], np.int32),
            (OutputSpec(row, GREEDY),),
        )
        return self._submit(
            Kind.PROJECT,
            pages=np.empty(0, np.int32),
            writes=(),
            project=request,
            embeds=(slot,),
        )

    async def run(
        self, tokens: Sequence[int], handles: Sequence[int], **details: Any
    ) -> int:
        """Forward, wait, and return the sampled token."""
        number = self.forward(tokens, handles, **details)
        await self.world.outcomes.wait(number)
        (token,) = self.world.outcomes.tokens(number)
        return token

    async def decode(
        self, prompt: Sequence[int], num_tokens: int, pause_seconds: float = 0.0
    ) -> list[int]:
        """Continue a prompt in a context of its own that grows page by page."""
        handles: list[int] = []
        context, found, start = list(prompt), list[int](), 0
        for _ in range(num_tokens):
            handles += self.allocate(-(-len(context) // PAGE_SIZE) - len(handles))
            token = await self.run(context[start:], handles, start=start)
            start = len(context)
            context.append(token)
            found.append(token)
            await trio.sleep(pause_seconds)
        self.release(handles)
        return found

    def close(self) -> None:
        """End: withdraw everything and give everything back."""
        if self.is_closed:
            return
        self.is_closed = True
        for command in list(self.tenant.unfinished):
            command.withdraw()
        self.release(list(self.table))
        for slot in self.slots:
            self.world.embeds.release(slot)
        self.world.batcher.tenants.pop(self.tenant, None)

    def _submit(self, kind: Kind, **details: Any) -> int:
        world = self.world
        world.next_token += 1
        command = Command(
            kind,
            self.tenant,
            on_done=world.outcomes.note(world.next_token),
            submitted_at=trio.current_time(),
            **details,
        )
        world.batcher.submit(command)
        return world.next_token

    def _on_evicted(self, error: Exception) -> None:
        assert self.error is None, "it is told once"
        self.error = error
        self.world.nursery.start_soon(self._end)

    async def _end(self) -> None:
        await trio.sleep(0.003)
        self.close()


@asynccontextmanager
async def open_world(
    *,
    num_pages: int = 8,
    swap_pages: int = 99,
    engine: Engine | None = None,
    step_seconds: float = 0.01,
    device: Device | None = None,
    **control: Any,
) -> AsyncGenerator[World]:
    """Serve a fake model whose steps take trio's time, or end when the device lets them."""
    engine = engine or FakeEngine(num_pages=num_pages, page_size=PAGE_SIZE)
    page_bytes = engine.info.page_bytes
    config = ControlConfig(
        **{"goes_ahead": True, "swap_bytes": swap_pages * page_bytes, **control}
    )
    pool = PagePool(num_pages=num_pages, page_size=PAGE_SIZE)
    embeds = EmbedPool(engine.info.num_embeds)
    device = device or InlineDevice(engine, step_seconds)
    batcher = Batcher(engine, pool, embeds, config, device, max_queued=9999)
    async with trio.open_nursery() as nursery:
        world = World(engine, pool, embeds, batcher, config, nursery)
        nursery.start_soon(batcher.run)
        yield world
        for guest in world.guests:
            guest.close()
        nursery.cancel_scope.cancel()
    world.check()
    assert pool.num_virtual == 0
    assert pool.num_free == num_pages
    assert embeds.num_free == embeds.num_embeds


def run_in_jumping_time(
    function: Callable[[], Awaitable[T]], *, limit_seconds: float = 120.0
) -> T:
    """Run a function with a clock that jumps: waiting for ever takes no time, and fails."""

    async def limited() -> T:
        with trio.fail_after(limit_seconds):
            return await function()

    return trio.run(limited, clock=MockClock(autojump_threshold=0))
