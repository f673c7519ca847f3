"""``decode.wit``: the loop of sampling and feeding back, beside the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pie_trio.application.host.forward import (
    INT32S,
    SAMPLER,
    read_sampler,
    warn_of_positions,
)
from pie_trio.application.host.in_flight import Held, check_room, request_bytes
from pie_trio.application.host.interface import HANDLES, fallible, interface, waiting
from pie_trio.application.host.processors import resolve_processor
from pie_trio.application.host.relay import Relay
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
    from collections.abc import Callable, Sequence

    from pie_trio.application.host.relay import Envelope
    from pie_trio.application.host.session import Session
    from pie_trio.application.waiting import Waiting
    from pie_trio.control.outbox import Outbox
    from pie_trio.control.queues import CommandQueue

__all__ = ["INTERFACE", "Decoding"]

MAX_STOP_TEXTS = 64
MAX_STOP_CHARACTERS = 4096
MAX_STREAM_TOKENS = 1 << 20
"""Its pages are named beforehand: more would be a list without end."""

SLOT_BYTES = 12
"""Of its mask: the row, what is hidden, and what will be seen later."""

UNREAD_BYTES = 96
"""Of a token that was not read yet, with its text."""

STOP_BYTES = 64
"""Of a stop token, or a character of a stop text."""

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

ENVELOPE = Record(before=STRING, after=STRING)


class Decoding:
    """A session's streams.

    Attributes:
        streams: By the number that the guest chose, with the queue of each.
        awaited: Those of which there is a ticket for what there is to read.
        relays: Those whose text goes to the client, or is kept until they end, with the ticket,
            what reads them and what that keeps.
    """

    def __init__(self, *, max_streams: int) -> None:
        self.streams: HandleTable[tuple[DecodeStream, CommandQueue, Held]] = (
            HandleTable("decode stream", max_handles=max_streams)
        )
        self.awaited: set[DecodeStream] = set()
        self.relays: dict[DecodeStream, tuple[int, Relay, Held]] = {}

    def close(self) -> None:
        """End all streams; their commands finish after the step that is running."""
        for stream, _, held in self.streams.clear():
            stream.forget_reader()
            stream.withdraw()
            held.let_go()
            self.forget_relay(stream)

    def has_relay(self, stream: DecodeStream, relay: Relay) -> bool:
        """Say whether this is what relays a stream, or has last."""
        return stream in self.relays and self.relays[stream][1] is relay

    def forget_relay(self, stream: DecodeStream) -> None:
        """Forget what a relay has read of a stream, if there is one."""
        if stream in self.relays:
            *_, held = self.relays.pop(stream)
            held.let_go()


def start_decode_stream(
    session: Session, queue: int, handle: int, request: Sequence[Any]
) -> None:
    """Start a stream under an unused number."""
    found, streams = session.queues.get(queue), session.decoding.streams
    wanted = _read_request(session, found, request)
    streams.check_unused([handle])
    num_bytes = _stream_bytes(wanted, found.model.pool.page_size)
    check_room(session, num_bytes, len(wanted.token_ids))
    if wanted.processor is not None:
        session.processor_use.check(1)
    held = Held(session.in_flight, num_bytes, 2)
    use = _StreamUse(session, held, has_processor=wanted.processor is not None)
    try:
        stream = start_stream(wanted, _owner(session, found, use))
    except BaseException:
        use.give_back()
        held.let_go()
        raise
    session.tree.totals.add("tokens", len(wanted.token_ids))
    streams.add(handle, (stream, found, held))
    if len(wanted.positions):
        last = int(wanted.positions.max()) + wanted.max_tokens - 1
        warn_of_positions(session, last, found.model)


def read_stream(session: Session, handle: int) -> int:
    """Return a ticket for what a stream has to read next."""
    stream = begin_reading(session, handle)
    awaited, tickets = session.decoding.awaited, session.tickets
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
        if not isinstance(
            session.tickets.peek(ticket), DecodeStream | Relay | Exception
        ):
            raise BadArgumentError(
                f"ticket {ticket} is not a decode stream's: finish it instead"
            )
        reader: DecodeStream | Relay = session.tickets.take(ticket)
        if isinstance(reader, Relay) and session.decoding.has_relay(
            reader.stream, reader
        ):
            session.decoding.forget_relay(reader.stream)
        return lower_chunk(reader)

    return session.when_ready(ticket, take)


def relay_stream(session: Session, handle: int, envelope: Envelope | None) -> int:
    """Send the text of a stream to the client; return a ticket for the end of that."""
    return _read_to_end(session, handle, session.outbox, envelope)


def collect_stream(session: Session, handle: int) -> int:
    """Return a ticket for the end of a stream, with all that there is to read until then."""
    return _read_to_end(session, handle, None, None)


def _read_to_end(
    session: Session, handle: int, outbox: Outbox | None, envelope: Envelope | None
) -> int:
    stream = begin_reading(session, handle)
    decoding, tickets = session.decoding, session.tickets
    num_bytes = UNREAD_BYTES * stream.num_left + sum(map(len, envelope or ()))
    check_room(session, num_bytes)
    tickets.check_room()
    held = Held(session.in_flight, num_bytes, 1)

    def close() -> None:
        relay.end()
        if decoding.has_relay(stream, relay):
            decoding.awaited.discard(stream)

    # What it has read stays until it was asked for: who is cancelled has no ticket any more.
    ticket = tickets.open(on_close=close)
    relay = Relay(
        stream,
        outbox,
        envelope,
        lambda outcome: tickets.complete(ticket, outcome, stream),
    )
    decoding.awaited.add(stream)
    decoding.relays[stream] = ticket, relay, held
    relay.start()
    return ticket


def end_relay(session: Session, handle: int) -> tuple[Any, ...]:
    """End a relay and return what it has read; whoever waits for it gets nothing."""
    decoding = session.decoding
    stream, *_ = decoding.streams.get(handle)
    if stream not in decoding.relays:
        raise BadArgumentError(f"nothing relays decode stream {handle}: read it")
    ticket, relay, _ = decoding.relays[stream]
    relay.end()
    chunk = lower_chunk(relay)
    decoding.awaited.discard(stream)
    decoding.forget_relay(stream)
    session.tickets.complete(ticket, relay, stream)
    return chunk


def begin_reading(session: Session, handle: int) -> DecodeStream:
    """Return a stream that somebody begins to read, and forget what was relayed before.

    Raises:
        InferletError: There is none, it was read to its end, or somebody reads it.
    """
    stream, *_ = session.decoding.streams.get(handle)
    if stream.has_ended:
        raise BadArgumentError(f"decode stream {handle} was read to its end: close it")
    if stream in session.decoding.awaited:
        raise BadArgumentError(
            f"there is a ticket already for what decode stream {handle} has to read next: "
            "take or cancel it"
        )
    session.decoding.forget_relay(stream)
    return stream


def lower_chunk(reader: DecodeStream | Relay) -> tuple[Any, ...]:
    """Return what there is to read, as a program gets it."""
    unread = reader.take()
    return (
        unread.token_ids,
        unread.text,
        unread.logprobs,
        unread.finish,
        reader.num_written,
    )


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
    stream, queue, source_held = streams.get(source)
    streams.check_unused([target])
    num_bytes = source_held.num_bytes
    check_room(session, num_bytes)
    if stream.has_processor:
        session.processor_use.check(1)
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
            use.give_back()
            held.let_go()
            tickets.complete(ticket, outcome, model)
            return
        try:
            streams.check_unused([target])
        except (BadArgumentError, LimitError) as error:
            outcome.withdraw()  # another has taken the number meanwhile
            held.let_go()
            tickets.complete(ticket, error, model)
        else:
            streams.add(target, (outcome, queue, held))
            tickets.complete(ticket, None, model)

    # It counts from now on, also while it waits for a step, and whoever wants the ticket.
    held = Held(session.in_flight, num_bytes, 2)
    use = _StreamUse(session, held, has_processor=stream.has_processor)
    try:
        stream.fork(pages, spec, _owner(session, queue, use), on_done)
    except BaseException:
        use.give_back()
        held.let_go()
        tickets.release(ticket)
        raise
    return ticket


def close_stream(session: Session, handle: int) -> None:
    """End a stream at once and forget it."""
    stream, _, held = session.decoding.streams.remove(handle)
    stream.close(CancelledError("the stream was closed"))
    held.let_go()
    session.decoding.forget_relay(stream)


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


def _stream_bytes(wanted: StreamRequest, page_size: int) -> int:
    """Return the most that a stream keeps, as long as its command or its handle is there."""
    num_pages = len(wanted.pages)
    num_stops = len(wanted.stop_tokens) + sum(map(len, wanted.stop_texts))
    num_unread = min(wanted.max_unread, wanted.max_tokens)
    return (
        # It keeps the handles beside the pages.
        2 * request_bytes(num_pages, len(wanted.token_ids))
        + SLOT_BYTES * num_pages * page_size
        + STOP_BYTES * num_stops
        + UNREAD_BYTES * num_unread
    )


class _StreamUse:
    """What a stream is counted as from its start, or the call that forks it, to its end.

    Args:
        session: Whose it is.
        held: What it keeps; its handle keeps that too.
        has_processor: It has a copy of a processor.
    """

    def __init__(self, session: Session, held: Held, *, has_processor: bool) -> None:
        self._session, self._held = session, held
        self._mask_bytes = 0
        self._give_processor: Callable[[], None] | None = None
        session.in_flight.add()
        if has_processor:
            self._give_processor = session.processor_use.take()

    def count_mask(self, num_bytes: int) -> None:
        """Count the mask of its first forward."""
        self._mask_bytes = num_bytes
        self._session.in_flight.add_mask(num_bytes)

    def give_back(self) -> None:
        """Note that it has ended, or has not come to be."""
        self._session.in_flight.remove(self._mask_bytes)
        self._held.let_go()
        if self._give_processor is not None:
            self._give_processor()


def _owner(session: Session, queue: CommandQueue, use: _StreamUse) -> StreamOwner:
    model = queue.model

    def on_started(stream: DecodeStream) -> None:
        use.count_mask(stream.mask_bytes)
        queue.add(stream)

    def on_ended(stream: DecodeStream) -> None:
        use.give_back()
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
        "relay-stream": fallible(relay_stream, U32, U32, Option(ENVELOPE)),
        "collect-stream": fallible(collect_stream, U32, U32),
        "end-relay": fallible(end_relay, CHUNK, U32),
        "stop-stream": fallible(stop_stream, Unit(), U32),
        "fork-stream": fallible(fork_stream, U32, U32, U32, HANDLES, SAMPLER),
        "close-stream": fallible(close_stream, Unit(), U32),
    },
    types={
        "stream-request": STREAM_REQUEST,
        "finish-reason": FINISH_REASON,
        "chunk": CHUNK,
        "envelope": ENVELOPE,
    },
)
