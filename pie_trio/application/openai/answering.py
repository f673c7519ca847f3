"""From a request to its answer: launch, wait for the first word, then tell or collect the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from pie_trio.application.openai.failures import error_body
from pie_trio.application.openai.pieces import PieceDecoder, Usage
from pie_trio.application.openai.programs import launch
from pie_trio.application.server.answers import answer_json
from pie_trio.application.server.failures import TooLargeError
from pie_trio.application.web import make_event_stream
from pie_trio.errors import PieError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from typing import Any

    from quart.wrappers import Response

    from pie_trio.application.openai.answer import Answer
    from pie_trio.application.openai.asked import Kind
    from pie_trio.application.server.events import Batch
    from pie_trio.application.server.limits import ServerLimits
    from pie_trio.application.server.owners import Owner
    from pie_trio.application.server.running import EventReader, RunningInstance
    from pie_trio.application.server.state import ServerState

__all__ = ["answer_with", "refuse"]

HEARTBEAT = b": keep-alive\n\n"
FIRST_WORD_SECONDS = 2.0
"""So long a stream waits for its first word, to have an error's status if there is one."""
CLIENT_LEFT = "the client that asked has left"


def refuse(error: PieError, headers: Mapping[str, str] | None = None) -> Response:
    """Return the answer that is an error."""
    status, body = error_body(error)
    return answer_json(body, status, headers)


async def answer_with(
    state: ServerState, answer: Answer, kind: Kind, *, owner: Owner
) -> Response:
    """Let a program answer.

    Raises:
        PieError: It cannot be launched, or fails before a stream has begun.
    """
    instance = await launch(state, answer.asked, kind, owner=owner)
    limits = state.registry.limits
    if not answer.asked.is_streamed:
        return answer_json(await _collect(instance.attach(), answer, limits))
    try:
        await _wait_for_word(instance, answer, limits)
    except BaseException:
        instance.cancel(CLIENT_LEFT)
        instance.events.let_go()
        raise
    response = make_event_stream(_stream(instance.attach(), answer, limits))
    response.headers["x-instance-id"] = instance.instance_id
    return response


async def _wait_for_word(
    instance: RunningInstance, answer: Answer, limits: ServerLimits
) -> None:
    """Wait until it says something, and raise if that is an error.

    Nobody is attached meanwhile, which has to be soon: see ``ServerLimits.lease_seconds``.
    """
    decoder, after = _decoder(instance, answer), 0
    with trio.move_on_after(min(FIRST_WORD_SECONDS, limits.lease_seconds / 2)):
        while (batch := await instance.events.read(after)) is not None:
            after = batch.events[-1].number
            if decoder.decode(batch.events):
                return


async def _collect(
    reader: EventReader, answer: Answer, limits: ServerLimits
) -> Mapping[str, Any]:
    decoder, usage = _decoder(reader.instance, answer), Usage()
    num_bytes = 0
    with reader:
        async for batch in reader:
            num_bytes += sum(event.size for event in batch.events)
            if num_bytes > limits.max_answer_bytes:
                raise TooLargeError(
                    f"the answer has more than {limits.max_answer_bytes} bytes: ask for a "
                    "stream, or for less"
                )
            for piece in decoder.decode(batch.events):
                if isinstance(piece, Usage):
                    usage = piece
                else:
                    answer.add(piece)
    return answer.document(usage)


async def _stream(
    reader: EventReader, answer: Answer, limits: ServerLimits
) -> AsyncGenerator[bytes]:
    decoder = _decoder(reader.instance, answer)
    with reader:
        if beginning := b"".join(answer.begin()):
            yield beginning
        while True:
            batch: Batch | None = None
            # Opened and closed between two yields: none may happen inside.
            with trio.move_on_after(limits.heartbeat_seconds) as beat:
                batch = await anext(reader, None)
            if batch is None and not beat.cancelled_caught:
                return
            chunks = [HEARTBEAT] if batch is None else []
            try:
                for piece in decoder.decode(batch.events) if batch else ():
                    if isinstance(piece, Usage):
                        chunks += answer.end(piece)
                    else:
                        chunks += answer.stream(piece)
            except PieError as error:
                yield b"".join([*chunks, *answer.fail(error)])
                return
            if chunks:  # all that is there is one write
                yield b"".join(chunks)


def _decoder(instance: RunningInstance, answer: Answer) -> PieceDecoder:
    asked = answer.asked
    return PieceDecoder(instance.program, asked.num_choices, asked.origins)
