"""Random programs of several inferlets give what each would have had alone, one by one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from pie_trio.control.commands import Priority
from pie_trio.engine_api import NO_SLOT
from pie_trio.errors import CancelledError, OutOfEmbedsError, OutOfPagesError
from pie_trio.inference.fake import fake_continuation
from tests.control.guests import (
    PAGE_SIZE,
    Guest,
    World,
    open_world,
    run_in_jumping_time,
)

if TYPE_CHECKING:
    from collections.abc import Callable

NUM_GUESTS = 3
MAX_TOKENS = 3 * PAGE_SIZE
MAX_CONTEXTS_EACH = 2
FEW_PAGES, MANY_PAGES = 9, 200
"""More than what one inferlet holds, and than what all of them do."""

FEWER = settings(max_examples=settings().max_examples * 2 // 5)
INDEX = st.integers(0, 99)


@dataclass(frozen=True)
class Open:
    """A new context of an inferlet."""

    guest: int


@dataclass(frozen=True)
class Extend:
    """Write tokens at the end of a context, or over its last ones."""

    context: int
    tokens: tuple[int, ...]
    back: int
    stores: bool
    priority: Priority


@dataclass(frozen=True)
class Fork:
    """A context with the same contents, of the same inferlet or of another."""

    context: int
    guest: int | None


@dataclass(frozen=True)
class Drop:
    """Give a context back."""

    context: int


@dataclass(frozen=True)
class Project:
    """Ask for the distribution of a hidden state that was stored."""

    context: int


@dataclass(frozen=True)
class Withdraw:
    """Withdraw one of the commands so far."""

    command: int


@dataclass(frozen=True)
class Suspend:
    """Have the pages of an inferlet moved."""

    guest: int


@dataclass(frozen=True)
class Pause:
    """Let the others work."""

    seconds: float


Op = Open | Extend | Fork | Drop | Project | Withdraw | Suspend | Pause
EXTEND = st.builds(
    Extend,
    context=INDEX,
    tokens=st.lists(st.integers(0, 255), min_size=1, max_size=6).map(tuple),
    back=st.sampled_from([0, 0, 0, 1, 3, 5]),
    stores=st.booleans(),
    priority=st.sampled_from(Priority),
)
WITHDRAW = st.builds(Withdraw, INDEX)
KINDS: list[st.SearchStrategy[Op]] = [
    *[EXTEND] * 8,
    st.builds(Open, INDEX),
    st.builds(Fork, INDEX, st.none()),
    st.builds(Fork, INDEX, INDEX),
    st.builds(Drop, INDEX),
    st.builds(Project, INDEX),
    st.builds(Suspend, INDEX),
    *[st.builds(Pause, st.sampled_from([0.0, 0.001, 0.01, 0.015, 0.4]))] * 3,
]


def programs(*more: st.SearchStrategy[Op]) -> st.SearchStrategy[list[Op]]:
    """Return programs of some length that begin with a context for each inferlet."""
    kinds: list[st.SearchStrategy[Op]] = [*KINDS, *more]
    op: st.SearchStrategy[Op] = st.sampled_from(kinds).flatmap(lambda kind: kind)
    start: list[Op] = [Open(guest) for guest in range(NUM_GUESTS)]
    return st.lists(op, min_size=10, max_size=40).map(lambda ops: start + ops)


@dataclass
class Context:
    """What a context should hold, and how the inferlet calls its pages."""

    guest: Guest
    handles: list[int]
    tokens: list[int] = field(default_factory=list[int])
    stored: tuple[int, list[int]] | None = None  # the slot, and the tokens up to there


class Run:
    """Submits what a program says, and knows what each command should return."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.guests = [world.launch() for _ in range(NUM_GUESTS)]
        self.contexts: list[Context] = []
        self.expected: dict[int, list[int]] = {}

    async def execute(self, program: list[Op]) -> None:
        for op in program:
            for context in list(self.contexts):
                if context.guest.is_closed:
                    self.contexts.remove(context)
            await self.do(op)
            self.world.check()
        await self.world.outcomes.wait(*self.expected)
        self.world.check()

    async def do(self, op: Op) -> None:
        match op:
            case Pause(seconds):
                await trio.sleep(seconds)
            case Suspend(index):
                guest = self.guests[index % NUM_GUESTS]
                self.world.batcher.suspend(guest.tenant, lambda: None)
            case Open(index):
                self.open(self.guests[index % NUM_GUESTS], None)
            case Withdraw(index):
                commands = [c for g in self.guests for c in g.tenant.unfinished]
                if commands:
                    commands[index % len(commands)].withdraw()
            case _ if self.contexts:
                context = self.contexts[op.context % len(self.contexts)]
                self.do_to(op, context)
            case _:
                pass

    def do_to(self, op: Extend | Fork | Drop | Project, context: Context) -> None:
        match op:
            case Fork(guest=index):
                other = None if index is None else self.guests[index % NUM_GUESTS]
                self.open(other or context.guest, context)
            case Drop():
                context.guest.release(context.handles)
                self.contexts.remove(context)
            case Project():
                if context.stored is not None:
                    slot, tokens = context.stored
                    number = context.guest.project(slot, len(tokens) - 1)
                    self.expected[number] = fake_continuation(tokens, 1)
            case Extend():
                self.extend(op, context)

    def open(self, guest: Guest, source: Context | None) -> None:
        held = Counter(id(context.guest) for context in self.contexts)
        if guest.is_closed or held[id(guest)] == MAX_CONTEXTS_EACH:
            return
        context = Context(guest, [])
        if source is not None:
            context.handles = guest.fork(source.handles, source.guest)
            context.tokens = source.tokens.copy()
        self.contexts.append(context)

    def extend(self, op: Extend, context: Context) -> None:
        guest = context.guest
        start = max(0, len(context.tokens) - op.back)
        if start + len(op.tokens) > MAX_TOKENS:
            start = 0
        tokens = [*context.tokens[:start], *op.tokens]
        missing = -(-len(tokens) // PAGE_SIZE) - len(context.handles)
        context.handles += guest.allocate(max(0, missing))
        context.tokens = tokens
        slot = None
        if op.stores:
            try:
                self.world.embeds.check_free(1)
            except OutOfEmbedsError:
                return
            slot = context.stored[0] if context.stored else guest.allocate_embed()
            context.stored = slot, tokens
        number = guest.forward(
            op.tokens,
            context.handles,
            start=start,
            store=slot,
            input_slots=[NO_SLOT] * len(op.tokens) if op.back == 1 else None,
            priority=op.priority,
        )
        self.expected[number] = fake_continuation(tokens, 1)

    def errors(self) -> list[Exception]:
        """Check every result, and return the errors instead of results."""
        found: list[Exception] = []
        for number, expected in self.expected.items():
            outcome = self.world.outcomes.by_token[number]
            if isinstance(outcome, Exception):
                assert isinstance(outcome, CancelledError | OutOfPagesError), outcome
                found.append(outcome)
            else:
                assert self.world.outcomes.tokens(number) == expected
        return found


CONTROLS = st.fixed_dictionaries(
    {
        "policy": st.sampled_from(["rendezvous", "adaptive", "eager", "k_or_t:3,0.02"]),
        "max_batch": st.sampled_from([1, 2, 256]),
        "max_batch_tokens": st.sampled_from([2, 5, 2048]),
    }
)


def run_program(
    program: list[Op], is_allowed: Callable[[Exception], bool], **details: object
) -> None:
    async def run() -> None:
        async with open_world(**details) as world:  # type: ignore[arg-type]
            run = Run(world)
            await run.execute(program)
            refused = [error for error in run.errors() if not is_allowed(error)]
            assert refused == []

    run_in_jumping_time(run)


@FEWER
@given(programs(), CONTROLS)
def test_programs_have_the_tokens_that_each_would_have_alone(
    program: list[Op], control: dict[str, object]
) -> None:
    run_program(program, lambda _: False, num_pages=MANY_PAGES, **control)


@FEWER
@given(programs(), CONTROLS)
def test_programs_without_shared_pages_have_the_same_tokens_when_pages_are_short(
    program: list[Op], control: dict[str, object]
) -> None:
    own = [op for op in program if not isinstance(op, Fork) or op.guest is None]
    run_program(own, lambda _: False, num_pages=FEW_PAGES, **control)


@FEWER
@given(
    programs(WITHDRAW, WITHDRAW),
    CONTROLS,
    st.sampled_from([4, 6, FEW_PAGES, MANY_PAGES]),
    st.sampled_from([0, 3, 99]),
    st.sampled_from(["ladder", "fcfs"]),
)
def test_whatever_is_withdrawn_or_short_every_program_ends_and_nobody_sees_a_wrong_token(
    program: list[Op],
    control: dict[str, object],
    num_pages: int,
    swap_pages: int,
    contention: str,
) -> None:
    run_program(
        program,
        lambda _: True,
        num_pages=num_pages,
        swap_pages=swap_pages,
        contention=contention,
        **control,
    )
