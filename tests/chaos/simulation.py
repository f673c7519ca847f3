"""A server in virtual time, to which events happen; after each, all that must hold is checked."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pie_trio.application.services import open_services
from pie_trio.application.serving import LoadedEngine, open_models
from pie_trio.config import ControlConfig, InstanceLimits
from pie_trio.errors import CancelledError
from pie_trio.inference.fake import FakeTokenizer
from tests.application.host.clients import PAGE_SIZE, Rig
from tests.chaos.device import ChaosDevices, ChaosEngine
from tests.chaos.events import Event, describe_failure, shrink_events
from tests.chaos.instances import BROKEN_TOKEN, MAX_TOKENS, STREAM_TOKENS, Simulated
from tests.control.engines import Gate

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_INSTANCES, NUM_PAGES = 8, 20
QUIET_SECONDS = 15.0
"""In which everything that was begun must have ended."""
POLICIES = ("adaptive", "rendezvous", "eager", "t:0.02", "k_or_t:3,0.05")
"""Those that wait for nobody for ever, as ``k:2`` does."""
WEIGHTS = {
    "launch": 6,
    "begin": 8,
    "extend": 24,
    "stream": 8,
    "fork": 6,
    "drop": 4,
    "export": 3,
    "import": 5,
    "send": 4,
    "drain": 3,
    "tell": 2,
    "receive": 2,
    "suspend": 1,
    "pass": 22,
    "cancel": 3,
    "stop": 1,
    "close-queue": 1,
    "poison": 1,
    "fail-step": 1,
    "lose-engine": 0.3,
}


@dataclass(frozen=True)
class Setting:
    """What the server is like."""

    policy: str = "adaptive"
    contention: str = "ladder"
    swap_bytes: int = 1 << 30


def make_events(seed: int, count: int) -> tuple[Setting, list[Event]]:
    """Return what a seed stands for."""
    source = random.Random(seed)
    setting = Setting(
        source.choice(POLICIES),
        source.choice(["ladder", "ladder", "fcfs"]),
        source.choice([0, 1 << 30, 1000]),
    )
    kinds = source.choices([*WEIGHTS], [*WEIGHTS.values()], k=count)
    return setting, [
        Event(kind, source.randrange(100), source.randrange(1000)) for kind in kinds
    ]


class Simulation:
    """The server, its instances and what they offer each other.

    Attributes:
        exports: Owner and tokens of each, by name.
        has_faults: Something was told to fail.
        counts: ``launched`` instances and ``compared`` tokens so far.
    """

    def __init__(self, rig: Rig, devices: ChaosDevices, nursery: trio.Nursery) -> None:
        self.rig, self._devices, self._nursery = rig, devices, nursery
        self._clock: Any = trio.lowlevel.current_clock()
        self.instances: list[Simulated] = []
        self.exports: dict[str, tuple[str, list[int]]] = {}
        self.has_faults = False
        self.counts: Counter[str] = Counter()

    async def run(self, events: Sequence[Event]) -> None:
        """Let all of them happen."""
        for number, event in enumerate(events):
            try:
                await self.happen(event)
            except AssertionError as error:
                raise AssertionError(f"event {number}, {event}: {error}") from error
        await self.finish()

    async def happen(self, event: Event) -> None:
        """Let one event happen, and check what must hold."""
        if event.kind == "launch":
            self._launch(event.who)
        elif event.kind == "pass":
            self._clock.jump((0.001, 0.011, 0.03, 0.2, 1.5)[event.number % 5])
        elif event.kind == "fail-step":
            self.has_faults = True
            self._devices.device.num_failing += 1 + event.number % 2
        elif event.kind == "lose-engine":
            self.has_faults = True
            self._devices.device.lose()
        elif alive := [i for i in self.instances if not i.scope.cancel_called]:
            self._act(alive[event.who % len(alive)], event)
        await self.settle()

    def _launch(self, owner: int) -> None:
        if len(self.instances) < MAX_INSTANCES:
            self.counts["launched"] += 1
            name = f"i{self.counts['launched']}"
            self.instances.append(Simulated(self, name, "ab"[owner % 2]))
            self._nursery.start_soon(self.instances[-1].run)

    def _act(self, instance: Simulated, event: Event) -> None:
        number = event.number
        match event.kind:
            case "cancel":
                instance.scope.cancel()
            case "stop":
                instance.session.stop(CancelledError("it was told to"))
            case "begin" if len(instance.contexts) < 4:
                context = instance.begin()
                tokens = [256, *(1 + (number + i) % 250 for i in range(number % 6))]
                instance.start(instance.extend, context, tokens, context=context)
            case "send":
                for _ in range(1 + number % 6):
                    instance.send()
            case "drain":
                instance.drain()
            case "tell":
                if len(instance.session.inbox) < 4:
                    self._nursery.start_soon(instance.session.inbox.put, "hello")
            case "receive":
                instance.start(instance.receive, context=None)
            case "suspend":
                instance.start(instance.suspend, context=None)
            case "close-queue":
                self._replace_queue(instance)
            case "import" if self.exports:
                names = [*self.exports]
                instance.take_export(names[number % len(names)])
            case _:
                self._use_context(instance, event)

    def _replace_queue(self, instance: Simulated) -> None:
        if not instance.num_busy:  # else its commands would not be its own fault
            instance.session.destroy_queue(0)
            instance.session.create_queue(0, "")

    def _use_context(self, instance: Simulated, event: Event) -> None:
        number = event.number
        context = instance.pick(number)
        if context is None or not context.tokens:
            return
        tokens = [1 + (number + i) % 250 for i in range(1 + number % 3)]
        room = MAX_TOKENS - len(context.tokens)
        if event.kind == "extend" and room > len(tokens):
            instance.start(instance.extend, context, tokens, context=context)
        elif event.kind == "stream" and room > len(tokens) + STREAM_TOKENS:
            max_unread = 1 + number % 4
            instance.start(
                instance.stream, context, tokens, max_unread, context=context
            )
        elif event.kind == "fork" and len(instance.contexts) < 5:
            instance.fork(context)
        elif event.kind == "drop":
            instance.drop(context)
        elif event.kind == "export" and len(self.exports) < 1000:
            instance.export(context, f"e{len(self.exports)}")
        elif event.kind == "poison" and room > 1:
            self.has_faults = True
            poison = [BROKEN_TOKEN]
            instance.start(instance.extend, context, poison, context=context)

    async def settle(self) -> None:
        """Wait until nothing can happen without time, and check what must hold."""
        await wait_all_tasks_blocked()
        self.instances = [i for i in self.instances if not i.has_ended]
        for model in self.rig.models.values():
            model.pool.check()
            model.embeds.check()
            self._check_owners(model.pool)
            names = {tenant.name for tenant in model.batcher.tenants}
            there = {i.session.launch.instance_id for i in self.instances}
            assert names <= there, f"{names - there} ended and is still served"

    def _check_owners(self, pool: Any) -> None:
        """Each owner of a page is a handle of an instance that is there, or an export."""
        held = [0] * len(pool.physical)
        for instance in self.instances:
            for table in instance.session.pages.values():
                for handle in table:
                    held[table.get(handle)] += 1
        for page, count in enumerate(held):
            num_owners = pool.num_owners(page)
            assert num_owners >= count, (
                f"page {page} is in {count} tables, {num_owners=}"
            )

    async def finish(self) -> None:
        """Let time pass until all is done; nobody may wait for ever."""
        deadline = trio.current_time() + QUIET_SECONDS
        while any(i.num_busy for i in self.instances):
            for instance in self.instances:  # whose clients read now
                instance.drain()
            waiting = [i for i in self.instances if i.num_busy]
            assert trio.current_time() < deadline, (
                f"somebody waits for ever: {[i.waits_for for i in waiting]}"
            )
            self._clock.jump(0.1)
            await wait_all_tasks_blocked()
            await self.settle()
        for instance in self.instances:
            instance.scope.cancel()
        while self.instances:
            assert trio.current_time() < deadline, "somebody does not end"
            self._clock.jump(0.05)
            await self.settle()


async def _simulate(setting: Setting, events: Sequence[Event]) -> Counter[str]:
    control = ControlConfig(
        goes_ahead=True,
        policy=setting.policy,
        contention=setting.contention,
        swap_bytes=setting.swap_bytes,
        inline_seconds=0.0,
        max_batch_tokens=8,
    )
    limits = InstanceLimits(max_unread=3, max_in_flight=12, max_pages=24)
    engine = ChaosEngine(
        num_pages=NUM_PAGES, page_size=PAGE_SIZE, broken_token_ids=[BROKEN_TOKEN]
    )
    devices = ChaosDevices()
    loaded = LoadedEngine(engine, FakeTokenizer(), devices.open)
    clock: Any = trio.lowlevel.current_clock()
    async with AsyncExitStack() as stack:
        models = await stack.enter_async_context(open_models([loaded], control, limits))
        services = await stack.enter_async_context(open_services(models))
        rig = Rig([engine], services, limits, Gate(is_open=True))
        async with trio.open_nursery() as nursery:
            simulation = Simulation(rig, devices, nursery)
            try:
                await simulation.run(events)
            finally:
                clock.autojump_threshold = 0.0  # what is left only ends
        rig.check_all_free()
        return simulation.counts


def simulate(setting: Setting, events: Sequence[Event]) -> Counter[str]:
    """Let events happen to a new server, and count instances and tokens that were compared.

    Raises:
        AssertionError: Something that must hold does not.
        BaseExceptionGroup: An instance, or the server, has failed.
    """
    return trio.run(_simulate, setting, events, clock=MockClock())


def failure_of(setting: Setting, events: Sequence[Event]) -> str | None:
    """Return what goes wrong in a simulation; None if nothing does."""
    return describe_failure(lambda: simulate(setting, events))


def shrink(
    setting: Setting, events: Sequence[Event], *, max_runs: int = 400
) -> list[Event]:
    """Return a part of the events with which something still goes wrong."""

    def fails(shorter: Sequence[Event]) -> bool:
        return failure_of(setting, shorter) is not None

    return shrink_events(events, fails, max_runs=max_runs)


def check_seed(seed: int, count: int) -> Counter[str]:
    """Simulate what a seed stands for, and count as :func:`simulate` does.

    Raises:
        AssertionError: With the setting, the fewest events found, and what goes wrong.
    """
    setting, events = make_events(seed, count)
    try:
        return simulate(setting, events)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        shown = shrink(setting, events)
        trace = "\n".join(f"  {event!r}," for event in shown)
        raise AssertionError(
            f"seed {seed} goes wrong with {setting}: {failure_of(setting, shown)}\n{trace}"
        ) from error
