"""From a request to its answer: launch, wait for the first word, then tell or collect the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import trio

from pie_trio.application.openai.failures import error_body
from pie_trio.application.openai.pieces import PieceDecoder, Usage
from pie_trio.application.openai.programs import launch
from pie_trio.application.server.answers import answer_json
from pie_trio.application.server.failures import TooLargeError
from pie_trio.application.web import make_feed_stream
from pie_trio.errors import PieError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from quart.wrappers import Response

    from pie_trio.application.openai.answer import Answer
    from pie_trio.application.openai.asked import Kind
    from pie_trio.application.server.events import Batch
    from pie_trio.application.server.limits import ServerLimits
    from pie_trio.application.server.owners import Owner
    from pie_trio.application.server.running import EventReader, RunningInstance
    from pie_trio.application.server.state import ServerState

__all__ = ["AnswerFeed", "answer_with", "refuse"]

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
    feed = AnswerFeed(instance.attach(), answer)
    response = make_feed_stream(feed, limits.heartbeat_seconds)
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


class AnswerFeed:
    """What an answer tells of the events of an instance."""

    def __init__(self, reader: EventReader, answer: Answer) -> None:
        self._reader, self._answer = reader, answer
        self._decoder = _decoder(reader.instance, answer)
        self._beginning = b""
        self._is_over = False

    def __enter__(self) -> Self:
        self._reader.__enter__()
        self._beginning = b"".join(self._answer.begin())
        return self

    def __exit__(self, *failure: object) -> None:
        self._reader.__exit__(*failure)

    def take(self) -> bytes | None:
        """Return what there is to tell."""
        if data := self._beginning:
            self._beginning = b""
            return data
        while not self._is_over and (batch := self._reader.take()) is not None:
            if data := b"".join(self._tell(batch)):
                return data
        return None if self._is_over or self._reader.is_over else b""

    async def wait(self) -> None:
        """Wait for more."""
        await self._reader.wait()

    def _tell(self, batch: Batch) -> list[bytes]:
        chunks: list[bytes] = []
        try:
            for piece in self._decoder.decode(batch.events):
                if isinstance(piece, Usage):
                    chunks += self._answer.end(piece)
                else:
                    chunks += self._answer.stream(piece)
        except PieError as error:
            chunks += self._answer.fail(error)
            self._is_over = True
        return chunks


def _decoder(instance: RunningInstance, answer: Answer) -> PieceDecoder:
    asked = answer.asked
    return PieceDecoder(instance.program, asked.num_choices, asked.origins)
