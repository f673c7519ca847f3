"""A server with whole guests in virtual time: events happen to it, its engine, its disk and clients."""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pie_trio.application.authoring.manifest import Limits, Manifest
from pie_trio.application.server.failures import DrainingError
from pie_trio.application.server.owners import Owner
from tests.chaos.determinism import repeatable
from tests.chaos.followed import Followed
from tests.chaos.guest_checks import check_nothing_left, check_pages, trees_of
from tests.chaos.guest_clients import GuestClient
from tests.chaos.truths import Truths
from tests.chaos.world import ErrorLog, GuestSetting, Language, World, open_world

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pie_trio.engine_api import Batch
    from tests.chaos.events import Event

MAX_RUNNING = 8
QUIET_SECONDS = 90.0
"""In which everything that was begun must have ended."""
DRAIN_SECONDS = 0.5
PROGRAMS = (
    *("streams", "streams", "stepwise", "branches", "branches", "sharing", "sharing"),
    *("grammars", "families", "families", "storing", "storing"),
    *("broadcasting", "broadcasting", "listening", "listening"),
)
PLANNED_LINES = (
    r"pie_trio\.control\.dispatch: a batch of \d+ failed: the step failed, as it was told",
    r"pie_trio\.control\.store: the store .*: disk I/O error, as it was told to",
)


@dataclass
class Outcome:
    """What a simulation was.

    Attributes:
        counts: Of what was compared and of what happened.
        history: Each event of each instance, and when.
    """

    counts: Counter[str]
    history: list[str]


class GuestSimulation:
    """A server, its instances and their clients."""

    def __init__(self, world: World, nursery: trio.Nursery, errors: ErrorLog) -> None:
        self.world, self._nursery, self._errors = world, nursery, errors
        self._clock: Any = trio.lowlevel.current_clock()
        self.truths = Truths(world.topics)
        self.followed: list[Followed] = []
        self.clients: list[GuestClient] = []
        self.counts: Counter[str] = Counter()
        self._is_draining = False
        world.device.on_fault = self._note_fault

    async def run(self, events: Sequence[Event]) -> None:
        """Let all of them happen, and check what must hold after each and in the end."""
        for number, event in enumerate(events):
            try:
                await self._happen(event)
                await self._settle()
            except AssertionError as error:
                raise AssertionError(f"event {number}, {event}: {error}") from error
        await self._finish()

    # ---- events --------------------------------------------------------------------------

    async def _happen(self, event: Event) -> None:
        number, world = event.number, self.world
        self.counts[event.kind] += 1
        match event.kind:
            case "launch" | "launch-detached" | "launch-unread":
                await self._launch(event)
            case "pass":
                seconds = (0.001, 0.011, 0.05, 0.1, 0.3, 1.5)[number % 6]
                if number % 7:
                    await self._advance(seconds)
                else:  # all of it at once, as where the machine stood still
                    self._clock.jump(seconds)
            case "fail-step":
                world.device.num_failing += 1 + number % 2
            case "lose-engine":
                world.device.lose()
            case "fail-disk":
                world.disk.num_failing += 1 + number % 4
            case "drain":
                self._is_draining = True
                for followed in self.followed:
                    followed.cut()
                for client in self.clients:
                    client.is_holder = False  # it is waited for a while only
                self._nursery.start_soon(world.registry.drain, DRAIN_SECONDS)
            case "read" | "leave" | "detach":
                self._act_as_client(event)
            case _:
                self._act_on_instance(event)

    async def _launch(self, event: Event) -> None:
        world, number = self.world, event.number
        if world.registry.num_running >= MAX_RUNNING:
            return
        program = world.programs[PROGRAMS[event.who % len(PROGRAMS)]]
        is_detached = event.kind == "launch-detached"
        limit = 0.4 if number % 11 == 0 else None
        try:
            instance = await world.registry.launch(
                program,
                {"seed": number},
                owner=Owner("ab"[number % 2]),
                manifest=Manifest(limits=Limits(wall_seconds=limit)),
                is_detached=is_detached,
            )
        except DrainingError:
            assert self._is_draining, "a server that nobody drains takes launches"
            return
        followed = Followed(instance, self.truths, is_detached=is_detached)
        self.followed.append(followed)
        if limit is not None:
            followed.touch("TimedOutError", "timed-out", "Cancelled")
        if world.setting.is_short:
            followed.touch("OutOfPagesError", "out-of-pages")
        if world.device.error is not None:
            followed.touch("EngineLostError", "engine-lost")
        if event.kind == "launch":
            permits = 1.0 if number % 3 == 0 else float("inf")
            self._connect(GuestClient(instance, permits=permits, is_holder=True))
        elif event.kind == "launch-unread":
            followed.cut()

    def _connect(self, client: GuestClient) -> None:
        self.clients.append(client)
        self._nursery.start_soon(client.run)

    def _act_as_client(self, event: Event) -> None:
        there = [client for client in self.clients if not client.has_ended]
        if not there:
            return
        client = there[event.who % len(there)]
        followed = self._find(client.instance.instance_id)
        match event.kind:
            case "read":
                client.permit(1 + event.number % 4)
            case "detach":
                followed.instance.detach()
                followed.is_detached = True
                for other in self.clients:
                    other.is_holder &= other.instance is not followed.instance
            case "leave":
                if client.is_holder:
                    followed.cut()
                client.leave()

    def _act_on_instance(self, event: Event) -> None:
        if not self.followed:
            return
        number = event.number
        recent = self.followed[-MAX_RUNNING:]
        followed = recent[event.who % len(recent)]
        instance = followed.instance
        match event.kind:
            case "attach":
                if instance.is_attached.is_set() or followed.is_detached:
                    after = number % (instance.events.last_number + 1)
                    self._connect(GuestClient(instance, after=after))
            case "say":
                self._nursery.start_soon(instance.send, f"word {number % 10}")
            case "end-input":
                instance.end_input()
            case "cancel":
                followed.cut()
                instance.cancel()
            case "kill":
                followed.cut()
                instance.kill()
            case unknown:
                raise ValueError(unknown)

    def _find(self, instance_id: str) -> Followed:
        return next(f for f in self.followed if f.instance_id == instance_id)

    def _note_fault(self, batch: Batch | None) -> None:
        """Note whose fault it is: of those in the batch, or of all that are there."""
        running = [f for f in self.followed if f.instance.state == "running"]
        if batch is None:
            for followed in running:
                followed.touch(
                    "EngineLostError", "engine-lost", "CommandCancelledError"
                )
            return
        hit = trees_of(batch, self.world)
        for followed in running:
            session: Any = followed.instance._session
            if any(session.tree.totals is totals for totals in hit):
                followed.touch(
                    "EngineFailedError", "engine-failed", "CommandCancelledError"
                )

    # ---- time ----------------------------------------------------------------------------

    async def _advance(self, seconds: float) -> None:
        """Let time pass, from one deadline to the next."""
        until = trio.current_time() + seconds
        while True:
            await wait_all_tasks_blocked()
            left = until - trio.current_time()
            if left <= 0:
                return
            next_in = trio.lowlevel.current_statistics().seconds_to_next_deadline
            self._clock.jump(min(left, max(next_in, 0.0)))

    async def _settle(self) -> None:
        """Wait until nothing can happen without time, and check what must hold."""
        await wait_all_tasks_blocked()
        if self.truths.failures:
            raise self.truths.failures[0]
        check_pages(self.world)
        self._check_trees()

    def _check_trees(self) -> None:
        """Assert that no inferlet is there whose first parent has ended."""
        sessions: list[Any] = [
            f.instance._session for f in self.followed if f.instance.state == "running"
        ]
        running = [session.tree.totals for session in sessions]
        for tenant in self.world.model.batcher.tenants:
            assert any(tenant.totals is totals for totals in running), (
                f"{tenant.name} is there still, but who launched it is not"
            )

    async def _finish(self) -> None:
        """Let time pass until all is done; nobody may wait for ever."""
        world = self.world
        for client in self.clients:
            client.permit(float("inf"))
        until = trio.current_time() + QUIET_SECONDS
        while world.registry.num_running or any(not c.has_ended for c in self.clients):
            left = [f for f in self.followed if f.kinds[-1:] != ["end"]]
            assert trio.current_time() < until, (
                f"somebody waits for ever: {[(f.instance_id, f.kinds) for f in left]}"
            )
            await self._advance(0.5)
            await self._settle()
        world.disk.num_failing = 0
        for followed in self.followed:
            followed.check_ended()
        if world.disk.num_failed or self.truths.counts["writes"]:
            get_store = world.services.get_store
            assert get_store is not None, "open_services makes it"
            with trio.CancelScope() as scope:
                self._nursery.start_soon(self._advance_until, scope)
                await self.truths.check_store(await get_store())
                scope.cancel()
        await self._advance(1.0)
        check_nothing_left(world)
        self._check_log()

    async def _advance_until(self, scope: trio.CancelScope) -> None:
        """Let time pass while something else waits."""
        while not scope.cancel_called:
            self._clock.jump(0.01)
            await trio.lowlevel.checkpoint()

    def _check_log(self) -> None:
        """Assert that no error was logged but those that were planned."""
        planned = [re.compile(line) for line in PLANNED_LINES]
        lines = self._errors.lines
        wrong = [line for line in lines if not any(p.match(line) for p in planned)]
        assert not wrong, f"the server logged errors: {wrong}"


async def _simulate(
    setting: GuestSetting, events: Sequence[Event], language: Language
) -> Outcome:
    errors, logger = ErrorLog(), logging.getLogger("pie_trio")
    clock: Any = trio.lowlevel.current_clock()
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(errors)
    try:
        async with (
            open_world(setting, language) as world,
            trio.open_nursery() as nursery,
        ):
            simulation = GuestSimulation(world, nursery, errors)
            try:
                await simulation.run(events)
            finally:
                nursery.cancel_scope.cancel()
                clock.autojump_threshold = 0.0  # what is left only ends
    finally:
        logger.removeHandler(errors)
        logger.propagate = propagates
    counts = simulation.counts + simulation.truths.counts
    counts["instances"] = len(simulation.followed)
    for followed in simulation.followed:
        counts[f"{followed.name} {followed.instance.state}"] += 1
    return Outcome(counts, [line for f in simulation.followed for line in f.history])


def simulate_guests(
    setting: GuestSetting, events: Sequence[Event], language: Language, *, seed: int = 0
) -> Outcome:
    """Let events happen to a new server; the same ones are the same to the last message.

    Raises:
        AssertionError: Something that must hold does not.
        BaseExceptionGroup: A client, or the server, has failed.
    """
    language.random_bytes.seed(seed)
    with repeatable(seed):
        return trio.run(_simulate, setting, events, language, clock=MockClock())
