"""One instance's side of every host call: its tables, its tickets, its messages.

The methods are the WIT's functions in Python form: they take lifted values, answer at once or
return :class:`Waiting`, and raise ``InferletError`` for what is the guest's fault. The Wasm
boundary and the native mode both call them; neither adds anything of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import trio

from pie_trio._version import __version__
from pie_trio.application.waiting import Waiting
from pie_trio.control.commands import Command
from pie_trio.control.forwards import GuestForward, plan_forward
from pie_trio.control.handles import HandleTable
from pie_trio.control.outbox import Message, Outbox
from pie_trio.control.queues import CommandQueue
from pie_trio.control.tickets import TicketTable
from pie_trio.engine_api import ForwardResult, SamplerSpec
from pie_trio.errors import BadArgumentError, LimitError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from pie_trio.application.host.instance_log import InstanceLog
    from pie_trio.config import InstanceLimits
    from pie_trio.control.forwards import ForwardPlan
    from pie_trio.control.served_model import ServedModel

__all__ = ["Launch", "Session"]

T = TypeVar("T")

LONG_TOKENIZER_INPUT = 1 << 14
"""Characters or tokens that take about 10 ms: too long for the loop that everybody shares."""

MAX_TOKENIZER_INPUT = 1 << 22


@dataclass(frozen=True, slots=True)
class Launch:
    """What an instance was launched with.

    Attributes:
        instance_id: Unique on the server.
        arguments: A JSON object, by name of argument.
    """

    instance_id: str
    arguments: str


class Session:
    """The host object of one instance.

    Args:
        launch: Its name and arguments.
        models: By name; the first is the default.
        limits: What it may use.
        log: Where its output goes.
    """

    def __init__(
        self,
        launch: Launch,
        models: Mapping[str, ServedModel],
        limits: InstanceLimits,
        log: InstanceLog,
    ) -> None:
        self.launch, self.models, self.limits, self.log = launch, models, limits, log
        self.outbox = Outbox(
            max_unread=limits.max_unread, max_bytes=limits.max_unread_bytes
        )
        self.tickets = TicketTable(
            max_in_flight=limits.max_in_flight, on_wake=self._expect
        )
        self.queues: HandleTable[CommandQueue] = HandleTable(
            "queue", max_handles=limits.max_queues
        )
        self.pages: dict[str, HandleTable[int]] = {
            name: HandleTable("page", max_handles=limits.max_pages) for name in models
        }
        self._num_unfinished = 0
        self._is_warned = False
        self._all_finished = trio.Event()
        self._timers: dict[int, float] = {}
        self._next_timer = 1

    # ---- life cycle ------------------------------------------------------------------

    def settle(self) -> None:
        """Note that the guest waits, computes for long, or has ended: batches need not wait."""
        for model in self.models.values():
            model.rendezvous.settle(self)

    async def close(self) -> None:
        """Give everything back; returns once no batch uses the instance's pages any more."""
        self.settle()
        self.outbox.close()  # first: what waits for room is delivered, not taken back
        self.tickets.cancel_all()
        self.queues.clear()
        for name, table in self.pages.items():
            for page in table.clear():
                self.models[name].pool.release(page)
        # Bounded by the step of the device, and one for copies that others share: what has
        # not started was withdrawn above, and a batcher that stops finishes what it has.
        with trio.CancelScope(shield=True):
            while self._num_unfinished:
                self._all_finished = trio.Event()
                await self._all_finished.wait()

    def _expect(self) -> None:
        for model in self.models.values():
            model.rendezvous.expect(self)

    # ---- runtime ---------------------------------------------------------------------

    def get_version(self) -> str:
        """Return the version of the server."""
        return __version__

    def get_instance_id(self) -> str:
        """Return the name of this run."""
        return self.launch.instance_id

    def get_arguments(self) -> str:
        """Return what the program was launched with, as JSON."""
        return self.launch.arguments

    def now(self) -> float:
        """Return the time on trio's clock."""
        return trio.current_time()

    def write_log(self, level: str, text: str) -> None:
        """Append a text to the instance's log."""
        self.log.write(level, text)

    # ---- messaging -------------------------------------------------------------------

    def send(self, message: Message) -> int | None:
        """Send a message to the client; return a ticket if it waits for room."""
        if self.outbox.put(message):
            return None
        self.tickets.check_room()
        self.outbox.check_late(message)
        ticket = self.tickets.open(lambda: take_back())
        take_back = self.outbox.put_late(
            message, lambda: self.tickets.complete(ticket, None)
        )
        return ticket

    def send_bytes(self, data: NDArray[np.uint8]) -> int | None:
        """Send bytes; see :meth:`send`."""
        return self.send(data.tobytes())

    # ---- tickets ---------------------------------------------------------------------

    def wait(self, tickets: list[int], deadline: float | None) -> list[int] | Waiting:
        """Wait until one of the tickets is ready; return those that are."""
        if deadline is not None and not math.isfinite(deadline):
            raise BadArgumentError(f"a deadline is a finite time, got {deadline}")
        if deadline is None and not tickets:
            raise BadArgumentError(
                "waiting for no ticket and without a deadline would never end"
            )
        ready = self.tickets.ready(tickets)
        if ready or (deadline is not None and deadline <= trio.current_time()):
            return ready
        return Waiting(lambda: self.tickets.wait_any(tickets, deadline))

    def _when_ready(self, ticket: int, take: Any) -> Any:
        if self.tickets.ready([ticket]):
            return take(ticket)

        async def work() -> Any:
            await self.tickets.wait_any([ticket], None)
            return take(ticket)

        return Waiting(work)

    def finish(self, ticket: int) -> Waiting | None:
        """Wait for a ticket, close it, and raise if its command failed."""

        def take(ticket: int) -> None:
            self.tickets.take(ticket)

        result: Waiting | None = self._when_ready(ticket, take)
        return result

    def cancel(self, ticket: int) -> None:
        """Withdraw a command that has not started, and close its ticket."""
        self.tickets.cancel(ticket)

    # ---- models ----------------------------------------------------------------------

    def available_models(self) -> list[str]:
        """Return the names of all models, the default one first."""
        return list(self.models)

    def get_model(self, name: str) -> tuple[Any, ...]:
        """Return the record ``model-info``."""
        model = self._model(name)
        info = model.info
        return (
            info.name,
            list(info.traits),
            info.description,
            info.version,
            info.license,
            info.prompt_template,
            info.vocab_size,
            info.max_positions,
            list(info.eos_token_ids),
            info.page_size,
            model.config.max_batch_tokens,
            min(model.config.max_distribution, info.vocab_size),
        )

    def _model(self, name: str) -> ServedModel:
        if not name:
            return next(iter(self.models.values()))
        try:
            return self.models[name]
        except KeyError:
            raise BadArgumentError(
                f"there is no model {name!r}: the server has {', '.join(self.models)}"
            ) from None

    # ---- queues ----------------------------------------------------------------------

    def create_queue(self, queue: int, model: str) -> None:
        """Open a queue on a model under an unused number."""
        served = self._model(model)
        self.queues.check_unused([queue])
        self.queues.add(queue, CommandQueue(served))

    def destroy_queue(self, queue: int) -> None:
        """Close a queue and withdraw what has not started."""
        self.queues.remove(queue).withdraw_all()

    def synchronize(self, queue: int) -> int:
        """Return a ticket that is ready once the queue's commands have finished."""
        found = self.queues.get(queue)
        self.tickets.check_room()
        ticket = self.tickets.open(lambda: take_away())
        take_away = found.synchronize(lambda: self.tickets.complete(ticket, None))
        return ticket

    # ---- allocate --------------------------------------------------------------------

    def alloc_kvpage(self, queue: int, pages: list[int]) -> None:
        """Allocate a page under each of these unused numbers."""
        model, table = self._page_table(queue)
        table.check_unused(pages)
        for page in pages:
            table.add(page, model.pool.allocate())

    def dealloc_kvpage(self, queue: int, pages: list[int]) -> None:
        """Give pages back; commands already enqueued still see them."""
        model, table = self._page_table(queue)
        if len(set(pages)) != len(pages):
            raise BadArgumentError("the same page is named twice: give each back once")
        for page in pages:
            table.get(page)  # all or nothing
        for page in pages:
            model.pool.release(table.remove(page))

    def fork_kvpage(self, queue: int, sources: list[int], targets: list[int]) -> None:
        """Let unused numbers share the contents of pages."""
        model, table = self._page_table(queue)
        if len(sources) != len(targets):
            raise BadArgumentError(
                f"each source needs a target: {len(sources)} sources, {len(targets)} targets"
            )
        shared = [table.get(source) for source in sources]
        table.check_unused(targets)
        for target, page in zip(targets, shared, strict=True):
            model.pool.share(page)
            table.add(target, page)

    def _page_table(self, queue: int) -> tuple[ServedModel, HandleTable[int]]:
        model = self.queues.get(queue).model
        return model, self.pages[model.info.name]

    # ---- forward ---------------------------------------------------------------------

    def forward_text(self, queue: int, request: Sequence[Any]) -> int:
        """Enqueue a forward and return its ticket."""
        tokens, positions, pages, start, mask, outputs, sampler, top_k = request
        wanted = GuestForward(
            token_ids=tokens,
            positions=positions,
            pages=pages,
            start=start,
            mask=mask,
            outputs=outputs,
            sampler=None if sampler is None else SamplerSpec(*sampler),
            top_k=top_k,
        )
        found = self.queues.get(queue)
        model, table = self._page_table(queue)
        self.tickets.check_room()
        if self._num_unfinished >= self.limits.max_in_flight:
            raise LimitError(
                f"{self._num_unfinished} commands have not finished, which is as many as an "
                "inferlet may have; withdrawn ones count until the device gets to them"
            )
        plan = plan_forward(wanted, table, model.pool, model.info, model.config)
        self._warn_of_positions(plan, model)
        ticket = self.tickets.open(lambda: model.batcher.withdraw(command))

        def on_done(outcome: ForwardResult | Exception) -> None:
            self._num_unfinished -= 1
            if self._num_unfinished == 0:
                self._all_finished.set()
            found.finish(command)
            self.tickets.complete(ticket, outcome)

        command = Command(
            plan.request,
            plan.copies,
            plan.reads,
            plan.writes,
            on_done,
            trio.current_time(),
        )
        self._num_unfinished += 1
        found.add(command)
        model.batcher.submit(command)
        return ticket

    def take_forward(self, ticket: int) -> tuple[Any, Any, Any] | Waiting:
        """Wait for a forward, close its ticket, and return its result."""
        result: tuple[Any, Any, Any] | Waiting = self._when_ready(
            ticket, self._take_forward
        )
        return result

    def _take_forward(self, ticket: int) -> tuple[Any, Any, Any]:
        if not isinstance(self.tickets.peek(ticket), ForwardResult | Exception):
            raise BadArgumentError(
                f"ticket {ticket} is not a forward's: finish it instead"
            )
        result: ForwardResult = self.tickets.take(ticket)
        return (
            result.token_ids.tolist(),
            result.top_ids.ravel(),
            result.top_probs.ravel(),
        )

    def _warn_of_positions(self, plan: ForwardPlan, model: ServedModel) -> None:
        highest = int(plan.request.positions.max())
        if highest >= model.info.max_positions and not self._is_warned:
            self._is_warned = True
            self.log.write(
                "warning",
                f"position {highest} is beyond the {model.info.max_positions} that "
                f"{model.info.name} was made for: what it says there may make no sense",
            )

    # ---- tokenize --------------------------------------------------------------------

    def tokenize(
        self, model: str, text: str, special: bool
    ) -> NDArray[np.int32] | Waiting:
        """Return the token ids of a text; a long one is tokenized in a thread."""
        found = self._model(model)
        encode = partial(found.tokenizer.encode, text, add_special_tokens=special)
        return _run_long(found, encode, size=len(text))

    def detokenize(self, model: str, tokens: list[int]) -> str | Waiting:
        """Return the text of token ids, without special tokens."""
        found = self._model(model)
        if tokens and max(tokens) >= found.info.vocab_size:
            raise BadArgumentError(
                f"token {max(tokens)} is not below {found.info.vocab_size}, the model's vocabulary"
            )
        decode = partial(found.tokenizer.decode, tokens, skip_special_tokens=True)
        return _run_long(found, decode, size=len(tokens))

    def get_vocabs(self, model: str) -> list[NDArray[np.uint8]]:
        """Return the bytes of every token."""
        return [
            np.frombuffer(t, np.uint8)
            for t in self._model(model).tokenizer.vocabulary()
        ]

    # ---- WASI ------------------------------------------------------------------------

    def write_output(self, stream: int, data: bytes) -> None:
        """Append what the program printed to its log."""
        self.log.write_output(stream, data)

    def add_timer(self, deadline: float) -> int:
        """Return the number of a new timer."""
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


def _run_long(model: ServedModel, call: Callable[[], T], *, size: int) -> T | Waiting:
    """Make a call of the tokenizer, or if its input is long, let the guest wait for it.

    Raises:
        LimitError: The input is too long.
    """
    if size > MAX_TOKENIZER_INPUT:
        raise LimitError(
            f"{size} characters or tokens at once, but {MAX_TOKENIZER_INPUT} are the limit: "
            "take them in parts"
        )
    if size <= LONG_TOKENIZER_INPUT:
        return call()

    async def work() -> T:
        # It touches neither the device nor the guest's memory: it may be left alone.
        return await trio.to_thread.run_sync(
            call, abandon_on_cancel=True, limiter=model.tokenizer_limiter
        )

    return Waiting(work)
