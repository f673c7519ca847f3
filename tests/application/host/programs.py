"""Random programs over contexts, and three ways to run them that must agree.

Contexts are lists of slots that grow, are overwritten, have gaps, and are forked. The plain way
keeps one list of positions a context, copies whole contexts, writes every mask out, and calls
the engine directly; the others are a session, with each forward awaited before the next call
or with all of them submitted at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from hypothesis import strategies as st

from pie_trio.engine_api import Batch, ForwardRequest, OutputSpec, PageCopy, SamplerSpec
from pie_trio.errors import EngineError
from pie_trio.inference.fake import FakeEngine
from tests.application.host.clients import PAGE_SIZE, Client, Sampler

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_PAGES_EACH = 4
MAX_SLOTS = MAX_PAGES_EACH * PAGE_SIZE
MAX_CONTEXTS = 6
NUM_QUEUES = 3
POOL_PAGES = 256
"""More than any of the programs needs."""


@dataclass(frozen=True)
class Extend:
    """Append tokens to a context.

    Attributes:
        move: From the context's end to the first slot that is written; negative overwrites.
        position: Of the first token; None goes on where the slot before it stopped.
    """

    context: int
    queue: int
    tokens: tuple[int, ...]
    move: int
    position: int | None
    seed: int


@dataclass(frozen=True)
class Change:
    """Make a new context, fork one, or drop one."""

    kind: Literal["new", "fork", "drop"]
    context: int
    queue: int


Program = list[Extend | Change]

INDEX = st.integers(0, 99)
QUEUES = st.integers(0, NUM_QUEUES - 1)
EXTENSIONS = st.builds(
    Extend,
    context=INDEX,
    queue=QUEUES,
    tokens=st.lists(st.integers(0, 257), min_size=1, max_size=3).map(tuple),
    move=st.sampled_from([0, 0, 0, 0, -6, -3, -1, 1, 2]),
    position=st.none() | st.none() | st.integers(0, 20),
    seed=st.integers(0, 3),
)
CHANGES = st.builds(
    Change,
    kind=st.sampled_from(["new", "fork", "fork", "drop"]),
    context=INDEX,
    queue=QUEUES,
)
# A context and a fork to begin with: of short random programs few would share a page.
START: Program = [
    Change("new", context=0, queue=0),
    Extend(0, 1, tokens=(256, *b"short"), move=0, position=None, seed=0),
    Change("fork", context=0, queue=2),
]
PROGRAMS = st.lists(EXTENSIONS | EXTENSIONS | CHANGES, min_size=6, max_size=25).map(
    lambda ops: START + ops
)


@dataclass
class Context:
    """The pages of a context, by the runner's own names, and the position of each slot."""

    pages: list[int] = field(default_factory=list[int])
    positions: list[int] = field(default_factory=lambda: [-1] * MAX_SLOTS)
    length: int = 0

    def place(self, op: Extend) -> tuple[int, list[int]] | None:
        """Write the positions of an extension; None if there is no room for it."""
        start = max(0, self.length + op.move)
        stop = start + len(op.tokens)
        if stop > MAX_SLOTS:
            return None
        first = op.position
        if first is None:
            first = self.positions[start - 1] + 1 if start else 0
        positions = list(range(first, first + len(op.tokens)))
        self.positions[start:stop] = positions
        self.length = stop
        return start, positions


def sampler_of(op: Extend) -> Sampler:
    return (1.0 if op.seed else 0.0, 0, 1.0, 0.0, op.seed)


def run_plainly(program: Program) -> list[list[int]]:
    """Return the tokens that each forward samples, without anything of the control layer."""
    engine = FakeEngine(num_pages=POOL_PAGES * 2, page_size=PAGE_SIZE)
    unused = iter(range(engine.info.num_pages))
    contexts: list[Context] = []
    sampled: list[list[int]] = []
    for op in program:
        if isinstance(op, Extend):
            if not contexts:
                continue
            context = contexts[op.context % len(contexts)]
            if (placed := context.place(op)) is None:
                continue
            start, positions = placed
            kv_len = start + len(positions)
            mask = [
                [0 <= slot <= position for slot in context.positions[:kv_len]]
                for position in positions
            ]
            request = ForwardRequest(
                token_ids=np.array(op.tokens, np.int32),
                positions=np.array(positions, np.int32),
                page_ids=np.array(context.pages, np.int32),
                kv_len=kv_len,
                mask=np.array(mask, np.bool_),
                outputs=(
                    OutputSpec(
                        np.arange(len(positions), dtype=np.int32),
                        SamplerSpec(*sampler_of(op)),
                    ),
                ),
            )
            (results,) = engine.execute(Batch((request,))).forwards
            assert not isinstance(results, EngineError)
            (result,) = results
            sampled.append(result.token_ids.tolist())
        elif op.kind == "drop" and contexts:
            contexts.pop(op.context % len(contexts))
        elif op.kind != "drop" and len(contexts) < MAX_CONTEXTS:
            made = Context([next(unused) for _ in range(MAX_PAGES_EACH)])
            if op.kind == "fork" and contexts:
                source = contexts[op.context % len(contexts)]
                made.positions, made.length = source.positions.copy(), source.length
                copies = [
                    PageCopy(old, new, 0, 0, PAGE_SIZE)
                    for old, new in zip(source.pages, made.pages, strict=True)
                ]
                engine.execute(Batch((), tuple(copies)))
            contexts.append(made)
    return sampled


async def run_on(
    client: Client, program: Program, *, is_at_once: bool
) -> list[list[int]]:
    """Return the same by calls of a session that has queue 0."""
    session = client.session
    for queue in range(1, NUM_QUEUES):
        session.create_queue(queue, "")
    contexts: list[Context] = []
    sampled: list[list[int]] = []
    tickets: list[int] = []
    for op in program:
        if isinstance(op, Extend):
            if not contexts:
                continue
            context = contexts[op.context % len(contexts)]
            if (placed := context.place(op)) is None:
                continue
            start, positions = placed
            num_pages = -(-(start + len(positions)) // PAGE_SIZE)
            missing = numbers(contexts, num_pages - len(context.pages))
            session.alloc_kvpage(op.queue, missing)
            context.pages += missing
            ticket = client.forward(
                op.tokens,
                pages=context.pages,
                start=start,
                positions=positions,
                outputs=range(len(positions)),
                sampler=sampler_of(op),
                queue=op.queue,
            )
            tickets.append(ticket)
            if not is_at_once:
                sampled.append(await client.take(tickets.pop()))
        elif op.kind == "drop" and contexts:
            dropped = contexts.pop(op.context % len(contexts))
            session.dealloc_kvpage(op.queue, dropped.pages)
        elif op.kind != "drop" and len(contexts) < MAX_CONTEXTS:
            made = Context()
            if op.kind == "fork" and contexts:
                source = contexts[op.context % len(contexts)]
                made.positions, made.length = source.positions.copy(), source.length
                made.pages = numbers(contexts, len(source.pages))
                session.fork_kvpage(op.queue, source.pages, made.pages)
            contexts.append(made)
    sampled += [await client.take(ticket) for ticket in tickets]
    return sampled


def numbers(contexts: Sequence[Context], count: int) -> list[int]:
    """Return the smallest page numbers that no context uses, so that they are used again."""
    used = {page for context in contexts for page in context.pages}
    free = (number for number in range(POOL_PAGES) if number not in used)
    return [next(free) for _ in range(count)]
