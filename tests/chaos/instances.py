"""One simulated instance: what it does, and what it knows must come out.

It keeps the tokens of each of its contexts in a list of its own, and each token that is sampled
must be the one that the model gives to that list: a page that two inferlets share wrongly, that was
given away too early or was lost without a word, gives another.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import trio

from pie_trio.application.waiting import Waiting
from pie_trio.errors import (
    EngineError,
    InferletError,
    UnknownHandleError,
)
from pie_trio.inference.fake import fake_continuation
from tests.application.host.clients import PAGE_SIZE, Client, assert_is_closed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.chaos.simulation import Simulation

BROKEN_TOKEN = 255
"""A forward with it fails alone, as if it had led to NaN."""
MAX_TOKENS = 24
STREAM_TOKENS = 6
GREEDY = (0.0, 0, 1.0, 0.0, 0, 0, None)


@dataclass
class Context:
    """Pages of an instance, and the tokens in them."""

    pages: list[int] = field(default_factory=list[int])
    tokens: list[int] = field(default_factory=list[int])
    is_busy: bool = False


class Simulated:
    """An instance of the simulation; runs until it is cancelled.

    Attributes:
        scope: Cancels it.
        has_ended: Everything it held is back.
        num_busy: Operations that wait for the device.
    """

    def __init__(self, simulation: Simulation, name: str, owner: str) -> None:
        self.simulation = simulation
        self.session = simulation.rig.make_session(name, owner=owner)
        self.session.create_queue(0, "")
        self.client = Client(self.session)
        self.owner = owner
        self.scope = trio.CancelScope()
        self.has_ended = self._is_taking = False
        self.num_busy = self.num_sent = self.num_taken = 0
        self.waits_for: list[str] = []  # names of operations
        self.contexts: list[Context] = []
        self._awaited: dict[int, trio.Event] = {}
        self._given_up: list[int] = []  # tickets
        self._waiting = trio.CancelScope()
        self._numbers = iter(range(1, 1 << 20))
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Be there until cancelled, and leave nothing behind."""
        self.session.on_ended = lambda _: self.scope.cancel()
        self.session.on_stop = self._end_soon
        try:
            with self.scope:
                async with trio.open_nursery() as self._nursery:
                    self._nursery.start_soon(self._wait_for_tickets)
        finally:
            self._nursery = None
            await self.session.close()
            assert_is_closed(self.session)
            self.has_ended = True

    async def _wait_for_tickets(self) -> None:
        """Wait as a guest does: once, for all that its tasks wait for."""
        while True:
            while self._given_up:
                self.session.cancel(self._given_up.pop())
            with trio.CancelScope() as self._waiting:
                self.session.settle()
                waited = [*self._awaited]
                for ticket in await self.session.tickets.wait_any(waited, None):
                    if ticket in self._awaited:
                        self._awaited.pop(ticket).set()

    async def _take(self, ticket: int, take: Callable[[int], Any]) -> Any:
        """Return what a ticket brings, once it is ready."""
        self._awaited[ticket] = is_ready = trio.Event()
        self._waiting.cancel()
        try:
            await is_ready.wait()
        finally:
            self._awaited.pop(ticket, None)
        answer = take(ticket)
        assert not isinstance(answer, Waiting), "a ticket that is ready need not wait"
        return answer

    def _end_soon(self) -> None:
        self.scope.deadline = trio.current_time() + 1

    def start(
        self, work: Callable[..., Awaitable[None]], *args: Any, context: Context | None
    ) -> None:
        """Run an operation in a task of the instance; what it may fail with ends only it."""
        if self._nursery is None or self.scope.cancel_called:
            return
        if context is not None:
            if context.is_busy or context not in self.contexts:
                return
            context.is_busy = True

        async def guarded() -> None:
            self.num_busy += 1
            self.waits_for.append(work.__name__)
            try:
                await work(*args)
            except (InferletError, EngineError) as error:
                self._check_failure(error)
                if context is not None:
                    self.drop(context)
            finally:
                self.num_busy -= 1
                self.waits_for.remove(work.__name__)
                if context is not None:
                    context.is_busy = False

        self._nursery.start_soon(guarded)

    def _check_failure(self, error: Exception) -> None:
        """Only what was told to fail may fail; nobody gets another's error."""
        is_sampled = "NaN" in str(error)  # a stream may come to the broken token itself
        if isinstance(error, EngineError) and not is_sampled:
            assert self.simulation.has_faults, f"nothing was told to fail: {error!r}"
        is_bug = isinstance(error, UnknownHandleError)
        assert not is_bug, f"a handle that is open: {error!r}"

    # ---- what it does ----------------------------------------------------------------

    def pick(self, number: int) -> Context | None:
        """Return a context that no operation uses."""
        idle = [context for context in self.contexts if not context.is_busy]
        return idle[number % len(idle)] if idle else None

    def begin(self) -> Context:
        """Return a new context."""
        self.contexts.append(Context())
        return self.contexts[-1]

    def drop(self, context: Context) -> None:
        """Give a context back."""
        self.contexts.remove(context)
        with suppress(InferletError):
            self.session.dealloc_kvpage(0, context.pages)

    def fork(self, context: Context) -> None:
        """Make a context that shares the pages of another."""
        pages = [next(self._numbers) for _ in context.pages]
        with suppress(InferletError):
            self.session.fork_kvpage(0, context.pages, pages)
            self.contexts.append(Context(pages, list(context.tokens)))

    def _make_room(self, context: Context, count: int) -> None:
        missing = -(-(len(context.tokens) + count) // PAGE_SIZE) - len(context.pages)
        pages = [next(self._numbers) for _ in range(missing)]
        self.session.alloc_kvpage(0, pages)
        context.pages += pages

    async def extend(self, context: Context, tokens: list[int]) -> None:
        """Append tokens, and compare the one that the model gives next."""
        self._make_room(context, len(tokens))
        start = len(context.tokens)
        ticket = self.client.forward(tokens, pages=context.pages, start=start)
        (result,) = await self._take(ticket, self.session.take_forward)
        context.tokens += tokens
        self._compare(context.tokens, list(result[0]))

    async def stream(
        self, context: Context, tokens: list[int], max_unread: int
    ) -> None:
        """Decode a few tokens, and compare them."""
        self._make_room(context, len(tokens) + STREAM_TOKENS)
        start = len(context.tokens)
        number = next(self._numbers)
        wanted: tuple[Any, ...] = (
            *(
                np.array(tokens, np.int32),
                np.arange(start, start + len(tokens), dtype=np.int32),
            ),
            *(context.pages, start, GREEDY, STREAM_TOKENS, [], [], False, max_unread),
            "",
        )
        self.session.start_stream(0, number, wanted)
        found: list[int] = []
        ended = None
        try:
            while ended is None:
                ticket = self.session.read_stream(number)
                chunk = await self._take(ticket, self.session.take_chunk)
                found += chunk[0]
                ended = chunk[3]
        finally:
            with suppress(InferletError):
                self.session.close_stream(number)
        self._compare([*context.tokens, *tokens], found)
        # Its last token was not run, and a stream that stops has written the others.
        context.tokens += [*tokens, *found[:-1]]

    def _compare(self, tokens: list[int], found: list[int]) -> None:
        wanted = fake_continuation(tokens, len(found))
        self.simulation.counts["compared"] += len(found)
        assert found == wanted, f"after {tokens} came {found} instead of {wanted}"

    def export(self, context: Context, name: str) -> None:
        """Offer a context to others of the same owner."""
        nothing = np.zeros(0, np.uint8)
        with suppress(InferletError):
            permission = ("owner", None)
            self.session.export_kvpage(
                0, context.pages, name, True, permission, None, nothing
            )
            self.simulation.exports[name] = (self.owner, list(context.tokens))

    def take_export(self, name: str) -> None:
        """Begin a context with what another has offered."""
        owner, tokens = self.simulation.exports[name]
        pages = [next(self._numbers) for _ in range(-(-len(tokens) // PAGE_SIZE))]
        try:
            self.session.import_kvpage(0, name, pages)
        except (InferletError, EngineError):
            return
        assert owner == self.owner, "an export of another owner was imported"
        self.contexts.append(Context(pages, list(tokens)))

    def send(self) -> None:
        """Send a numbered message, if there is room for it."""
        with suppress(InferletError):
            ticket = self.session.send(str(self.num_sent))
            self.num_sent += 1
            if ticket is not None:
                self.start(self._finish, ticket, context=None)

    async def _finish(self, ticket: int) -> None:
        await self._take(ticket, self.session.finish)

    def drain(self) -> None:
        """As its client: take what was sent, if there is something."""
        if self.num_sent > self.num_taken and not self._is_taking:
            self.start(self._take_sent, context=None)

    async def _take_sent(self) -> None:
        self._is_taking = True
        try:
            messages = await self.session.outbox.take()
        finally:
            self._is_taking = False
        for message in messages:
            assert message == str(self.num_taken), (
                f"message {self.num_taken} is missing, {message!r} came"
            )
            self.num_taken += 1

    async def receive(self) -> None:
        """Wait for a message of the client, for a while, as ``move_on_after`` does."""
        ticket = self.session.receive()
        with trio.move_on_after(0.05) as scope:
            await self._take(ticket, self.session.take_message)
        if scope.cancelled_caught:
            self._given_up.append(ticket)
            self._waiting.cancel()

    async def suspend(self) -> None:
        """Move everything to host memory; the next command brings it back."""
        await self._take(self.session.suspend_pages(), self.session.finish)
