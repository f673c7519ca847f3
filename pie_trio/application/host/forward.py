"""``forward.wit``: run the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_trio.application.host.embedding import (
    Inputs,
    append_slots,
    resolve_inputs,
    take_outputs,
)
from pie_trio.application.host.grants import check_grant
from pie_trio.application.host.in_flight import (
    check_room,
    request_bytes,
    result_bytes,
    submit,
)
from pie_trio.application.host.interface import HANDLES, fallible, interface, waiting
from pie_trio.application.host.processors import resolve_processor
from pie_trio.application.host.traits import check_trait
from pie_trio.application.wasm.values import (
    BOOL,
    F32,
    STRING,
    U32,
    U64,
    Array,
    Flags,
    List,
    Option,
    Record,
    Unit,
)
from pie_trio.control.commands import Kind, embed_key
from pie_trio.control.following import ForwardTail
from pie_trio.control.forwards import GuestForward, plan_forward
from pie_trio.engine_api import NO_PROCESSOR, OutputSpec, SamplerSpec
from pie_trio.errors import BadArgumentError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pie_trio.application.host.session import Session
    from pie_trio.application.waiting import Waiting
    from pie_trio.control.processors import Processor
    from pie_trio.control.queues import CommandQueue
    from pie_trio.control.served_model import ServedModel
    from pie_trio.engine_api import OutputResult, RequestResult

__all__ = [
    "INT32S",
    "INTERFACE",
    "OUTPUT",
    "SAMPLER",
    "Forwards",
    "read_outputs",
    "read_sampler",
    "warn_of_positions",
]

INT32S = Array(U32, np.int32)
FILTERS = Record(
    typical_p=F32,
    epsilon_cutoff=F32,
    eta_cutoff=F32,
    xtc_threshold=F32,
    xtc_probability=F32,
)
SAMPLER = Record(
    temperature=F32,
    top_k=U32,
    top_p=F32,
    min_p=F32,
    seed=U64,
    processor=U32,
    filters=Option(FILTERS),
)
EXTRAS = Flags("logprobs", "entropy", "logits", "hidden")
OUTPUT = Record(rows=INT32S, sampler=Option(SAMPLER), top=U32, extras=EXTRAS)
MASK = Option(List(List(U32)))
FORWARD_REQUEST = Record(
    tokens=INT32S,
    positions=INT32S,
    pages=HANDLES,
    start=U32,
    mask=MASK,
    outputs=List(OUTPUT),
    adapter=STRING,
)
EXTRA_RESULTS = Record(
    logprobs=Array(F32), entropy=Array(F32), logits=Array(F32), hidden=Array(F32)
)
OUTPUT_RESULT = Record(
    tokens=List(U32),
    top_ids=Array(U32),
    top_probs=Array(F32),
    extras=Option(EXTRA_RESULTS),
)

Mask = list[list[int]] | None

MAX_TAILS = 64
"""Of an inferlet; one that decodes in more places at once describes some forwards in full."""


class Forwards:
    """What a session keeps about its forwards.

    Attributes:
        has_warned: Of positions beyond those that a model was made for: once is enough.
        tails: What may be followed, by ticket, the oldest first.
    """

    def __init__(self) -> None:
        self.has_warned = False
        self.tails: dict[int, Tail] = {}

    def keep(self, ticket: int, tail: Tail) -> None:
        """Let the forward of a ticket be followed; the oldest is forgotten for it."""
        if len(self.tails) >= MAX_TAILS:
            del self.tails[next(iter(self.tails))]
        self.tails[ticket] = tail


@dataclass(slots=True)
class Tail:
    """What a forward that follows another one has in common with it.

    Attributes:
        queue: Its handle is ``number``.
        processors: Each with its handle.
        result_bytes: What the result of each takes.
    """

    forward: ForwardTail
    number: int
    queue: CommandQueue
    processors: Sequence[tuple[int, Processor]]
    result_bytes: int


def forward_text(session: Session, queue: int, request: Sequence[Any]) -> int:
    """Enqueue a forward and return its ticket."""
    tokens, positions, pages, start, mask, outputs, adapter = request
    found = session.queues.get(queue)
    model = found.model
    check_trait(model.info, "forward")
    if adapter:
        check_trait(model.info, "adapters")
    processors: list[Processor] = []
    specs = read_outputs(session, outputs, model, processors)
    wanted = GuestForward(tokens, positions, pages, start, mask, specs, None, adapter)
    num_bytes = request_bytes(len(pages), len(tokens))
    num_bytes += result_bytes(specs, model.info)
    check_room(session, num_bytes, len(tokens))
    table = session.pages[model.info.name]
    plan = plan_forward(
        wanted,
        table,
        model.pool,
        model.info,
        model.config,
        max_mask_entries=session.in_flight.mask_room,
    )
    warn_of_positions(session, int(plan.request.positions.max()), model)
    ticket = submit(
        session,
        found,
        Kind.FORWARD,
        writes=plan.writes,
        pages=plan.pages,
        forward=plan.request,
        copies=plan.copies,
        processors=processors,
        num_bytes=num_bytes,
    )
    tail = ForwardTail.of(wanted, plan, table)
    if tail is not None:
        handles = [outputs[0][1][5]] if processors else []
        used = list(zip(handles, processors, strict=True))
        size = result_bytes([tail.output], model.info)
        session.forwards.keep(ticket, Tail(tail, queue, found, used, size))
    return ticket


def next_forward(
    session: Session, after: int, tokens: NDArray[np.int32], pages: list[int]
) -> int:
    """Enqueue the forward that goes on where another one ended, and return its ticket."""
    forwards = session.forwards
    tail = forwards.tails.get(after)
    if tail is None:
        raise NotFoundError(
            f"the forward of ticket {after} cannot be followed: it returned more than its last "
            f"token, was followed already, or {MAX_TAILS} came after it; use forward-text"
        )
    found = session.queues.get(tail.number)
    if found is not tail.queue:
        raise NotFoundError(
            f"queue {tail.number} was closed after the forward of ticket {after}: use forward-text"
        )
    model = found.model
    processors: list[Processor] = []
    for number, processor in tail.processors:
        if resolve_processor(session, number, model) is not processor:
            raise NotFoundError(
                f"processor {number} was closed after the forward of ticket {after}: use "
                "forward-text"
            )
        processors.append(processor)
    num_bytes = request_bytes(len(tail.forward.handles) + len(pages), len(tokens))
    num_bytes += tail.result_bytes
    check_room(session, num_bytes, len(tokens))
    plan = tail.forward.plan_next(
        tokens,
        pages,
        session.pages[model.info.name],
        model.pool,
        model.info,
        model.config,
        max_mask_entries=session.in_flight.mask_room,
    )
    warn_of_positions(session, tail.forward.position, model)
    ticket = submit(
        session,
        found,
        Kind.FORWARD,
        writes=plan.writes,
        pages=plan.pages,
        forward=plan.request,
        copies=plan.copies,
        processors=processors,
        num_bytes=num_bytes,
    )
    del forwards.tails[after]
    forwards.tails[ticket] = tail
    return ticket


def forward(
    session: Session,
    queue: int,
    input_pages: list[int],
    inputs: list[int],
    output_pages: list[int],
    output_embeds: list[int],
    mask: Mask,
) -> int:
    """Enqueue a forward from embeds to embeds, and return its ticket."""
    return forward_with_adapter(
        session, queue, "", input_pages, inputs, output_pages, output_embeds, mask
    )


def forward_with_adapter(
    session: Session,
    queue: int,
    adapter: str,
    input_pages: list[int],
    inputs: list[int],
    output_pages: list[int],
    output_embeds: list[int],
    mask: Mask,
) -> int:
    """Enqueue a forward from embeds to embeds with an adapter, and return its ticket."""
    found = session.queues.get(queue)
    model, table = session.page_table(queue)
    check_trait(model.info, "forward")
    if adapter:
        check_trait(model.info, "adapters")
    num_pages = len(input_pages) + len(output_pages)
    num_bytes = request_bytes(num_pages, len(inputs) + len(output_embeds))
    check_room(session, num_bytes, len(inputs))
    read = resolve_inputs(session.embeds[model.info.name], inputs)
    outputs = take_outputs(
        session.embeds[model.info.name], output_embeds, read, model.embeds
    )
    with append_slots(
        model.pool, table, input_pages, output_pages, len(inputs)
    ) as slots:
        wanted = GuestForward(
            read.token_ids,
            read.positions,
            slots.pages,
            slots.start,
            mask,
            outputs.specs(len(inputs)),
            read.slots,
            adapter,
        )
        try:
            plan = plan_forward(
                wanted,
                table,
                model.pool,
                model.info,
                model.config,
                max_mask_entries=session.in_flight.mask_room,
            )
        except BaseException:
            outputs.roll_back()
            raise
        outputs.commit()
        warn_of_positions(session, int(plan.request.positions.max()), model)
        ticket = submit(
            session,
            found,
            Kind.FORWARD,
            writes=[*plan.writes, *map(embed_key, outputs.slots)],
            pages=plan.pages,
            forward=plan.request,
            copies=plan.copies,
            embeds=_distinct(read, outputs.slots),
            num_bytes=num_bytes,
        )
        outputs.leave()
        return ticket


def take_forward(session: Session, ticket: int) -> list[tuple[Any, ...]] | Waiting:
    """Wait for a forward or a projection, close its ticket, and return its results."""

    def take(ticket: int) -> list[tuple[Any, ...]]:
        if not isinstance(session.tickets.peek(ticket), tuple | Exception):
            raise BadArgumentError(
                f"ticket {ticket} is not a forward's: finish it instead"
            )
        results: RequestResult = session.tickets.take(ticket)
        return [
            (
                result.token_ids.tolist(),
                result.top_ids.ravel(),
                result.top_probs.ravel(),
                _extras(result),
            )
            for result in results
        ]

    return session.when_ready(ticket, take)


def take_tokens(session: Session, ticket: int) -> list[int] | Waiting:
    """Wait for a forward with one output, close its ticket, and return what was sampled."""

    def take(ticket: int) -> list[int]:
        outcome: object = session.tickets.peek(ticket)
        has_one = isinstance(outcome, tuple) and len(outcome) == 1  # pyright: ignore[reportUnknownArgumentType]
        if not has_one and not isinstance(outcome, Exception):
            raise BadArgumentError(
                f"ticket {ticket} is not that of a forward with one output: use take-forward for "
                "several, and finish for other commands"
            )
        (result,) = session.tickets.take(ticket)
        tokens: list[int] = result.token_ids.tolist()
        return tokens

    return session.when_ready(ticket, take)


def get_all_adapters(session: Session, queue: int) -> list[str]:
    """Return the names of the adapters of a queue's model."""
    info = session.queues.get(queue).model.info
    check_trait(info, "adapters")
    return list(info.adapters)


def mask_kvpage(session: Session, queue: int, page: int, hidden: list[bool]) -> None:
    """Hide tokens of a page from forwards that have no mask of their own."""
    model, table = session.page_table(queue)
    table.get(page)
    if len(hidden) != model.pool.page_size:
        raise BadArgumentError(
            f"a mask has an entry for each token of a page: expected {model.pool.page_size}, "
            f"got {len(hidden)}"
        )
    table.hide(page, np.array(hidden, np.bool_))


def read_outputs(
    session: Session,
    outputs: Sequence[Sequence[Any]],
    model: ServedModel,
    processors: list[Processor],
) -> tuple[OutputSpec, ...]:
    """Return what a guest wants to have returned; processors that it names are appended.

    Raises:
        BusyError: A processor is being made.
        ForbiddenError: The guest was not granted to see that.
        UnknownHandleError: A processor is not the guest's.
        UnsupportedError: The model lacks a trait.
    """
    return tuple(_read_output(session, output, model, processors) for output in outputs)


def read_sampler(values: Sequence[Any]) -> tuple[SamplerSpec, int]:
    """Return the sampler of a guest's record, and the number of its processor."""
    temperature, top_k, top_p, min_p, seed, processor, filters = values
    if filters is None:
        return SamplerSpec(temperature, top_k, top_p, min_p, seed), processor
    return SamplerSpec(temperature, top_k, top_p, min_p, seed, *filters), processor


def _read_output(
    session: Session,
    output: Sequence[Any],
    model: ServedModel,
    processors: list[Processor],
) -> OutputSpec:
    rows, sampler, top, extras = output
    spec, number = None, NO_PROCESSOR
    if sampler is not None:
        spec, handle = read_sampler(sampler)
        processor = resolve_processor(session, handle, model) if handle else None
        if processor is not None:
            processors.append(processor)
            number = processor.number
    if not extras:
        return OutputSpec(rows, spec, top, processor=number)
    for name in ("logits", "hidden"):
        if name in extras:
            check_grant(session, "logits", f"an output with {name}")
    if "logprobs" in extras and spec is None:
        raise BadArgumentError(
            "log-probabilities are those of sampled tokens: give the output a sampler"
        )
    return OutputSpec(
        rows,
        spec,
        top,
        logprobs="logprobs" in extras,
        entropy="entropy" in extras,
        logits="logits" in extras,
        hidden="hidden" in extras,
        processor=number,
    )


def _extras(result: OutputResult) -> tuple[Any, ...] | None:
    extras = (
        result.logprobs,
        result.entropy,
        result.logits.ravel(),
        result.hidden.ravel(),
    )
    return extras if any(map(len, extras)) else None


def _distinct(read: Inputs, outputs: Sequence[int]) -> tuple[int, ...]:
    return tuple({*read.stored, *outputs})


def warn_of_positions(session: Session, highest: int, model: ServedModel) -> None:
    """Write a warning to the log, once, if a position is beyond those of the model."""
    if highest >= model.info.max_positions and not session.forwards.has_warned:
        session.forwards.has_warned = True
        session.log.write(
            "warning",
            f"position {highest} is beyond the {model.info.max_positions} that "
            f"{model.info.name} was made for: what it says there may make no sense",
        )


INTERFACE = interface(
    "forward",
    {
        "forward-text": fallible(forward_text, U32, U32, FORWARD_REQUEST),
        "take-forward": waiting(take_forward, List(OUTPUT_RESULT), U32),
        "next-forward": fallible(next_forward, U32, U32, INT32S, HANDLES),
        "take-tokens": waiting(take_tokens, List(U32), U32),
        "forward": fallible(
            forward, U32, U32, HANDLES, HANDLES, HANDLES, HANDLES, MASK
        ),
        "forward-with-adapter": fallible(
            forward_with_adapter,
            U32,
            U32,
            STRING,
            HANDLES,
            HANDLES,
            HANDLES,
            HANDLES,
            MASK,
        ),
        "get-all-adapters": fallible(get_all_adapters, List(STRING), U32),
        "mask-kvpage": fallible(mask_kvpage, Unit(), U32, U32, List(BOOL)),
    },
    types={
        "sampler": SAMPLER,
        "filters": FILTERS,
        "extras": EXTRAS,
        "output": OUTPUT,
        "forward-request": FORWARD_REQUEST,
        "output-result": OUTPUT_RESULT,
        "extra-results": EXTRA_RESULTS,
    },
)
