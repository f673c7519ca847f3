"""One instance's side of every host call: its tables, its tickets, its messages.

The functions of the WIT are in the modules beside this one, an interface each. They take a
session and lifted values, answer at once or return :class:`Waiting`, and raise ``InferletError``
for what is the guest's fault. The Wasm boundary and the native mode both call them; neither adds
anything of its own.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from pie_trio.application.background import TaskGroup
from pie_trio.application.host.children import Children
from pie_trio.application.host.decode import Decoding
from pie_trio.application.host.forward import Forwards
from pie_trio.application.host.http import Http
from pie_trio.application.host.in_flight import InFlight
from pie_trio.application.host.processors import ProcessorUse
from pie_trio.application.host.receiving import RequestBudget
from pie_trio.application.host.runtime import Runtime
from pie_trio.application.host.topics import Subscriptions
from pie_trio.application.host.traits import check_trait
from pie_trio.application.host.trees import Tree
from pie_trio.application.services import Grants
from pie_trio.application.waiting import Waiting
from pie_trio.control.handles import HandleTable
from pie_trio.control.inbox import Inbox
from pie_trio.control.outbox import Outbox
from pie_trio.control.page_table import PageTable
from pie_trio.control.placing import Placement
from pie_trio.control.tenants import Tenant
from pie_trio.control.tickets import STOP, TicketTable
from pie_trio.errors import BadArgumentError, LimitError, StoppingError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pie_trio.application.host.children import Spawner
    from pie_trio.application.host.instance_log import InstanceLog
    from pie_trio.application.lifecycle.programs import Program
    from pie_trio.application.services import Services
    from pie_trio.config import InstanceLimits
    from pie_trio.control.embed_table import Embed
    from pie_trio.control.processors import Processor
    from pie_trio.control.queues import CommandQueue
    from pie_trio.control.quotas import KeyLimits
    from pie_trio.control.served_model import ServedModel

__all__ = ["Launch", "Session"]

T = TypeVar("T")

MAX_TIMERS = 1 << 14
"""Pollables of WASI that were not dropped."""

_ages = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Launch:
    """What an instance was launched with.

    Attributes:
        instance_id: Unique on the server.
        arguments: A JSON object, by name of argument.
        owner: On whose behalf it runs.
        grants: What it may do.
        depth: How many inferlets stand above it, each of which launched the next.
        key: The limits of the key that it was launched with, if it has some.
        tree: What is charged for it; None where it has no parent.
    """

    instance_id: str
    arguments: str
    owner: str = "local"
    grants: Grants = field(default_factory=Grants)
    depth: int = 0
    key: KeyLimits | None = None
    tree: Tree | None = None


class Session:
    """The host object of one instance.

    What only one interface needs is an object of that interface's module, made and closed here.

    Args:
        launch: Its name and arguments.
        services: What it shares with others.
        limits: What it may use.
        log: Where its output goes.

    Attributes:
        on_ended: Ends the instance from outside, with the reason. Set by whoever runs it.
        on_stop: Told that the instance is to end soon; see :meth:`stop`. Set by whoever runs it.
        stop_reason: Why it is to end, once it is.
        on_receive: Told each time the instance wants a message of its client. Set by a client
            that reads only what is wanted.
        spawner: Launches its children. Set by whoever runs it.
        program: What it runs. Set by whoever runs it.
        tree: What is charged for it and its children together.
        models: The replicas that it uses, by the name of the model.
    """

    def __init__(
        self,
        launch: Launch,
        services: Services,
        limits: InstanceLimits,
        log: InstanceLog,
    ) -> None:
        self.launch, self.services, self.limits, self.log = (
            launch,
            services,
            limits,
            log,
        )
        self.on_ended: Callable[[Exception], None] = lambda _: None
        self.on_stop: Callable[[], None] = lambda: None
        self.stop_reason: Exception | None = None
        self.on_receive: Callable[[], None] = lambda: None
        self.spawner: Spawner | None = None
        self.program: Program | None = None
        self.tickets = TicketTable(
            max_in_flight=limits.max_in_flight, on_wake=self._expect
        )
        self.tree = launch.tree or Tree(
            launch.instance_id, limits, num_models=max(1, len(services.models))
        )
        self.models = Placement(services.models, self.tree.placement)
        if self.tree.placement is None:
            self.tree.placement = self.models
        self.share = services.quotas.share_of(launch.owner, launch.key, self.tree.quota)
        boxes: dict[str, Any] = {
            "max_unread": limits.max_unread,
            "max_bytes": limits.max_unread_bytes,
            "share": self.share,
        }
        self.outbox, self.inbox = Outbox(**boxes), Inbox(**boxes)
        self.log.allowance = self.tree.log_allowance
        self.queues: HandleTable[CommandQueue] = HandleTable(
            "queue", max_handles=limits.max_queues, share=self.share
        )
        self.pages: dict[str, PageTable] = {}
        self.embeds: dict[str, HandleTable[Embed]] = {}
        self.tenants: dict[str, Tenant] = {}
        self.processors: HandleTable[Processor] = HandleTable(
            "processor", max_handles=limits.max_processors
        )
        self.processor_use = ProcessorUse(
            self.share, limits.max_processors, limits.max_processor_bytes
        )
        self.compiling_turn = services.compiling.of(launch.owner)
        self.tokenizing_turn = services.tokenizing.of(launch.owner)
        self.in_flight = InFlight(
            self.share, limits.max_mask_bytes, limits.max_command_bytes
        )
        self.forwards = Forwards()
        self.decoding = Decoding(max_streams=limits.max_in_flight)
        self.runtime = Runtime()
        self.tasks = TaskGroup(services.background)
        self.requests = RequestBudget(limits.max_request_bytes, self.share)
        self.http = Http()
        self.children = Children(limits)
        self.subscriptions = Subscriptions(
            "subscription", max_handles=limits.max_in_flight
        )
        self._timers: dict[int, float] = {}
        self._next_timer = 1
        self._age = next(_ages)

    # ---- life cycle ------------------------------------------------------------------

    def use_model(self, model: ServedModel) -> None:
        """Make the tables of a model; nothing if there are."""
        name = model.info.name
        if name in self.tenants:
            return
        table = PageTable(
            max_handles=self.limits.max_pages,
            page_size=model.info.page_size,
            share=self.share,
        )
        self.pages[name] = table
        self.embeds[name] = HandleTable(
            "embed", max_handles=self.limits.max_embeds, share=self.share
        )
        self.tenants[name] = tenant = Tenant(
            self.launch.instance_id,
            self._age,
            pages=table.values,
            on_pressure=lambda: self.runtime.signal_pressure(self),
            on_evicted=lambda error: self.on_ended(error),
            totals=self.tree.totals,
        )
        model.batcher.tenants[tenant] = None

    @property
    def num_steps(self) -> int:
        """Steps of the device that had work of it."""
        return sum(tenant.num_steps for tenant in self.tenants.values())

    @property
    def has_work(self) -> bool:
        """Whether a command of it is to run, or runs; a stream that waits for its reader is not."""
        return any(
            not command.is_paused
            for tenant in self.tenants.values()
            for command in tenant.unfinished
        )

    def settle(self) -> None:
        """Note that the guest waits, computes for long, or has ended: batches need not wait."""
        for name in self.tenants:
            self.models[name].batcher.arrivals.settle(self.launch.instance_id)

    def stop(self, reason: Exception) -> None:
        """Have the program cancelled, so that it can clean up; the first reason counts.

        It is told where it waits, or waits next. Whoever runs it ends it after the time that it
        has for this, ``grace_seconds``.
        """
        if self.stop_reason is None:
            self.stop_reason = reason
            self.tickets.stop()
            self.on_stop()

    async def close(self) -> None:
        """Give everything back; returns once no batch uses the instance's pages any more."""
        self.settle()
        self.runtime.close()
        self.outbox.close()  # first: what waits for room is delivered, not taken back
        self.tickets.cancel_all()
        self.decoding.close()
        self.inbox.close()
        self.subscriptions.close()
        self.queues.clear()
        for name, tenant in self.tenants.items():
            model = self.models[name]
            for command in tenant.unfinished:
                command.withdraw()  # also those whose ticket was released
            for page in self.pages[name].clear():
                model.pool.release(page)
            for embed in self.embeds[name].clear():
                if embed.slot >= 0:
                    model.embeds.release(embed.slot)
            model.exports.end_instance(self.launch.instance_id)
            model.batcher.tenants.pop(tenant, None)
            model.batcher.poke()  # others may wait for these pages
        # Bounded by the step of the device, and one for copies that others share: what has
        # not started was withdrawn above, and a batcher that stops finishes what it has.
        # Requests end where they stand, and children as this instance does.
        with trio.CancelScope(shield=True):
            await self.tasks.close()
            self.children.close()
            await self.in_flight.wait_finished()
        self.models.close()
        for processor in self.processors.clear():
            processor.drop()
        self.http.close()

    def _expect(self, source: object) -> None:
        """Let batches wait for the guest, which is about to run.

        Args:
            source: The model whose command it waited for, if it was one; without one, any of
                those that it uses may come next.
        """
        for name in self.tenants:
            model = self.models[name]
            if source is None or source is model:
                model.batcher.arrivals.expect(self.launch.instance_id)

    # ---- what the interfaces share ---------------------------------------------------

    def model(self, name: str) -> ServedModel:
        """Return the instance's replica of a model by name; of the default one without.

        Raises:
            BadArgumentError: There is no such model.
        """
        served = self.services.models
        try:
            return self.models[name or next(iter(served))]
        except KeyError:
            raise BadArgumentError(
                f"there is no model {name!r}: the server has {', '.join(served)}"
            ) from None

    def page_table(self, queue: int) -> tuple[ServedModel, PageTable]:
        """Return the model of a queue, and the instance's pages on it.

        Raises:
            UnknownHandleError: The queue is not open.
        """
        model = self.queues.get(queue).model
        check_trait(model.info, "allocate")
        return model, self.pages[model.info.name]

    def embed_table(self, queue: int) -> tuple[ServedModel, HandleTable[Embed]]:
        """Return the model of a queue, and the instance's embeds on it.

        Raises:
            UnknownHandleError: The queue is not open.
        """
        model = self.queues.get(queue).model
        check_trait(model.info, "allocate")
        return model, self.embeds[model.info.name]

    def when_ready(self, ticket: int, take: Callable[[int], T]) -> T | Waiting:
        """Return what ``take`` makes of the ticket once it is ready.

        Raises:
            StoppingError: The instance is to end; the ticket stays as it is. Raised once.
            UnknownHandleError: The ticket is not open.
        """

        def take_unless_stopped(ready: list[int]) -> T:
            if STOP in ready:
                raise StoppingError("the instance is to end: it was cancelled")
            return take(ticket)

        if ready := self.tickets.poll([ticket]):
            return take_unless_stopped(ready)

        async def work() -> T:
            return take_unless_stopped(await self.tickets.wait_any([ticket], None))

        return Waiting(work)

    # ---- WASI ------------------------------------------------------------------------

    def write_output(self, stream: int, data: bytes) -> None:
        """Append what the program printed to its log."""
        self.log.write_output(stream, data)

    def add_timer(self, deadline: float) -> int:
        """Return the number of a new timer.

        Raises:
            LimitError: There are too many, which ends the instance.
        """
        if len(self._timers) >= MAX_TIMERS:
            raise LimitError(
                f"{len(self._timers)} timers of WASI are open, which is as many as an inferlet may "
                "have: the program subscribes to times and does not drop them"
            )
        number = self._next_timer
        self._next_timer += 1
        self._timers[number] = deadline
        return number

    def timer_deadline(self, number: int) -> float:
        """Return when a timer is due."""
        return self._timers[number]

    def drop_resource(self, number: int) -> None:
        """Forget a timer."""
        self._timers.pop(number, None)
