"""``decode.wit``: the loop of sampling and feeding back, beside the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pie_trio.application.host.forward import (
    INT32S,
    SAMPLER,
    read_sampler,
    warn_of_positions,
)
from pie_trio.application.host.in_flight import check_room
from pie_trio.application.host.interface import HANDLES, fallible, interface, waiting
from pie_trio.application.host.processors import resolve_processor
from pie_trio.application.host.traits import check_trait
from pie_trio.application.wasm.values import (
    BOOL,
    F32,
    STRING,
    U32,
    Enum,
    List,
    Option,
    Record,
    Unit,
)
from pie_trio.control.handles import HandleTable
from pie_trio.control.streams import (
    DecodeStream,
    StreamOwner,
    StreamRequest,
    start_stream,
)
from pie_trio.errors import BadArgumentError, CancelledError, LimitError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pie_trio.application.host.session import Session
    from pie_trio.application.waiting import Waiting
    from pie_trio.control.queues import CommandQueue

__all__ = ["INTERFACE", "Decoding"]

MAX_STOP_TEXTS = 64
MAX_STOP_CHARACTERS = 4096
MAX_STREAM_TOKENS = 1 << 20
"""Its pages are named beforehand: more would be a list without end."""

STREAM_REQUEST = Record(
    tokens=INT32S,
    positions=INT32S,
    pages=HANDLES,
    start=U32,
    sampler=SAMPLER,
    max_tokens=U32,
    stop_tokens=List(U32),
    stop_texts=List(STRING),
    logprobs=BOOL,
    max_unread=U32,
    adapter=STRING,
)
FINISH_REASON = Enum("length", "stop-token", "stop-text", "stopped", "grammar")
CHUNK = Record(
    tokens=List(U32),
    text=STRING,
    logprobs=List(F32),
    finish=Option(FINISH_REASON),
    num_written=U32,
)


class Decoding:
    """A session's streams.

    Attributes:
        streams: By the number that the guest chose, with the queue of each.
        awaited: Those of which there is a ticket for what there is to read.
    """

    def __init__(self, *, max_streams: int) -> None:
        self.streams: HandleTable[tuple[DecodeStream, CommandQueue]] = HandleTable(
            "decode stream", max_handles=max_streams
        )
        self.awaited: set[DecodeStream] = set()

    def close(self) -> None:
        """End all streams; their commands finish after the step that is running."""
        for stream, _ in self.streams.clear():
            stream.forget_reader()
            stream.withdraw()


def start_decode_stream(
    session: Session, queue: int, handle: int, request: Sequence[Any]
) -> None:
    """Start a stream under an unused number."""
    found, streams = session.queues.get(queue), session.decoding.streams
    wanted = _read_request(session, found, request)
    streams.check_unused([handle])
    check_room(session)
    stream = start_stream(wanted, _owner(session, found))
    streams.add(handle, (stream, found))
    if len(wanted.positions):
        last = int(wanted.positions.max()) + wanted.max_tokens - 1
        warn_of_positions(session, last, found.model)


def read_stream(session: Session, handle: int) -> int:
    """Return a ticket for what a stream has to read next."""
    stream, _ = session.decoding.streams.get(handle)
    if stream.has_ended:
        raise BadArgumentError(f"decode stream {handle} was read to its end: close it")
    awaited = session.decoding.awaited
    if stream in awaited:
        raise BadArgumentError(
            f"there is a ticket already for what decode stream {handle} has to read next: "
            "take or cancel it"
        )
    tickets = session.tickets
    tickets.check_room()
    awaited.add(stream)
    # Until it is taken: a second one would find nothing after the first.
    ticket = tickets.open(
        stream.forget_reader, on_close=lambda: awaited.discard(stream)
    )
    # A batch does not wait for a reader, as it does for whoever waited for a command: with
    # itself as the source, the stream is none of the models that may expect somebody.
    stream.when_readable(lambda: tickets.complete(ticket, stream, stream))
    return ticket


def take_chunk(session: Session, ticket: int) -> tuple[Any, ...] | Waiting:
    """Wait until there is something to read, close the ticket, and return it."""

    def take(ticket: int) -> tuple[Any, ...]:
        if not isinstance(session.tickets.peek(ticket), DecodeStream | Exception):
            raise BadArgumentError(
                f"ticket {ticket} is not a decode stream's: finish it instead"
            )
        stream: DecodeStream = session.tickets.take(ticket)
        unread = stream.take()
        return (
            unread.token_ids,
            unread.text,
            unread.logprobs,
            unread.finish,
            stream.num_written,
        )

    return session.when_ready(ticket, take)


def stop_stream(session: Session, handle: int) -> None:
    """End a stream after the step that is running."""
    session.decoding.streams.get(handle)[0].stop()


def fork_stream(
    session: Session,
    source: int,
    target: int,
    pages: list[int],
    sampler: Sequence[Any],
) -> int:
    """Let another stream go on from where this one is; return a ticket."""
    streams = session.decoding.streams
    stream, queue = streams.get(source)
    streams.check_unused([target])
    check_room(session)
    spec, processor = read_sampler(sampler)
    if processor:
        raise BadArgumentError(
            "a fork of a stream goes on with a copy of its stream's processor: leave that of "
            "the sampler at 0"
        )
    tickets, model = session.tickets, queue.model
    ticket = tickets.open()

    def on_done(outcome: DecodeStream | Exception) -> None:
        if isinstance(outcome, Exception):
            session.in_flight.remove()
            tickets.complete(ticket, outcome, model)
            return
        try:
            streams.check_unused([target])
        except (BadArgumentError, LimitError) as error:
            outcome.withdraw()  # another has taken the number meanwhile
            tickets.complete(ticket, error, model)
        else:
            streams.add(target, (outcome, queue))
            tickets.complete(ticket, None, model)

    # It counts from now on, also while it waits for a step, and whoever wants the ticket.
    session.in_flight.add()
    try:
        stream.fork(pages, spec, _owner(session, queue, is_counted=True), on_done)
    except BaseException:
        session.in_flight.remove()
        tickets.release(ticket)
        raise
    return ticket


def close_stream(session: Session, handle: int) -> None:
    """End a stream at once and forget it."""
    stream, _ = session.decoding.streams.remove(handle)
    stream.close(CancelledError("the stream was closed"))


def _read_request(
    session: Session, queue: CommandQueue, request: Sequence[Any]
) -> StreamRequest:
    (
        tokens,
        positions,
        pages,
        start,
        sampler,
        max_tokens,
        stop_tokens,
        stop_texts,
        logprobs,
        max_unread,
        adapter,
    ) = request
    info = queue.model.info
    check_trait(info, "output-text")
    if adapter:
        check_trait(info, "adapters")
    if (
        len(stop_texts) > MAX_STOP_TEXTS
        or sum(map(len, stop_texts)) > MAX_STOP_CHARACTERS
    ):
        raise LimitError(
            f"a stream has at most {MAX_STOP_TEXTS} stop texts with {MAX_STOP_CHARACTERS} "
            "characters in all"
        )
    if max_tokens > MAX_STREAM_TOKENS:
        raise LimitError(
            f"a stream may have {MAX_STREAM_TOKENS} tokens, got {max_tokens}: start another "
            "when it has ended"
        )
    spec, processor = read_sampler(sampler)
    return StreamRequest(
        tokens,
        positions,
        pages,
        start,
        spec,
        max_tokens,
        frozenset(stop_tokens),
        tuple(stop_texts),
        logprobs,
        max_unread,
        adapter,
        resolve_processor(session, processor, queue.model),
    )


def _owner(
    session: Session, queue: CommandQueue, *, is_counted: bool = False
) -> StreamOwner:
    model = queue.model

    mask_bytes = 0

    def on_started(stream: DecodeStream) -> None:
        nonlocal mask_bytes
        if not is_counted:
            mask_bytes = stream.mask_bytes
            session.in_flight.add(mask_bytes)
        queue.add(stream)

    def on_ended(stream: DecodeStream) -> None:
        session.in_flight.remove(mask_bytes)
        queue.finish(stream)

    return StreamOwner(
        model,
        session.tenants[model.info.name],
        session.pages[model.info.name],
        queue.priority,
        queue.number,
        on_started,
        on_ended,
        session.in_flight.mask_room,
    )


INTERFACE = interface(
    "decode",
    {
        "start-stream": fallible(start_decode_stream, Unit(), U32, U32, STREAM_REQUEST),
        "read-stream": fallible(read_stream, U32, U32),
        "take-chunk": waiting(take_chunk, CHUNK, U32),
        "stop-stream": fallible(stop_stream, Unit(), U32),
        "fork-stream": fallible(fork_stream, U32, U32, U32, HANDLES, SAMPLER),
        "close-stream": fallible(close_stream, Unit(), U32),
    },
    types={
        "stream-request": STREAM_REQUEST,
        "finish-reason": FINISH_REASON,
        "chunk": CHUNK,
    },
)
