"""A generation in progress: chunks of tokens and text, from a stream or step by step."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, cast

from inferlet_py._errors import BadArgumentError, BusyError
from inferlet_py._processors import Grammar, Processor
from inferlet_py._relay import Relay
from inferlet_py._text import StopStrings, TextDecoder

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Awaitable,
        Callable,
        Mapping,
        Sequence,
    )

    from inferlet_py._host import ChunkValues, OutputResult, SamplerValues
    from inferlet_py._models import Model
    from inferlet_py._sampling import Sampler
    from inferlet_py._streams import HostStream

__all__ = [
    "Chunk",
    "FinishReason",
    "Generation",
    "GenerationSource",
    "StreamOptions",
]

FinishReason = Literal["stop", "length"]

MAX_STREAM_TOKENS = 1 << 15
"""A stream needs numbers for all its pages; a longer generation takes several."""

MAX_STOP_TEXTS = 64
MAX_STOP_CHARACTERS = 4096
"""The host's own limits; more of them are looked for here."""


@dataclass(frozen=True)
class Chunk:
    """Newly generated tokens.

    Attributes:
        text: What became certain by them; empty while a character or a stop string is open.
        token_ids: The tokens.
        logprobs: Of each token at temperature 1; None unless they were asked for.
        top_logprobs: For each token the most likely ones in its place, the most likely first,
            with their log-probabilities; None unless they were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] | None = None


@dataclass(frozen=True)
class StreamOptions:
    """What a generation wants of a stream."""

    sampler: SamplerValues
    max_tokens: int
    stop_tokens: list[int]
    stop_texts: list[str]
    logprobs: bool


@dataclass(frozen=True)
class GenerationSource:
    """The context, as far as a generation needs it.

    Attributes:
        model: Its model.
        last_tokens: The last of its tokens.
        step: Samples one token, which is not appended.
        append: Appends tokens.
        open_stream: Lets a stream sample tokens until a stop token or limit. The stream is not
            open any more once somebody else uses the context.
        read_stream: Waits for what it has sampled; None if another is to be opened. With a relay
            it waits for all of it.
        accept: Appends tokens that were read, with the number of slots that are written.
        end_stream: Ends the stream over the context.
        begin_processing: Notes the processor of a generation that goes on.
        end_processing: Notes that the generation with this processor has ended.
    """

    model: Model
    last_tokens: Sequence[int]
    step: Callable[[SamplerValues, int, tuple[str, ...]], Awaitable[OutputResult]]
    append: Callable[[Sequence[int]], None]
    open_stream: Callable[[StreamOptions], HostStream]
    read_stream: Callable[[HostStream, Relay | None], Awaitable[ChunkValues | None]]
    accept: Callable[[Sequence[int], int], None]
    end_stream: Callable[[], None]
    begin_processing: Callable[[Processor], None]
    end_processing: Callable[[Processor], None]


class Generation:
    """An asynchronous iterator over chunks. Made by ``Context.generate``.

    The tokens of a chunk are in the context once the chunk is returned, and no others. A chunk
    holds what was generated since the one before.

    Attributes:
        token_ids: Generated so far.
        finish_reason: ``stop`` or ``length`` once it has ended, None before.
    """

    def __init__(
        self,
        source: GenerationSource,
        *,
        max_tokens: int,
        sampler: Sampler,
        stop: Sequence[str],
        stop_tokens: Sequence[int],
        logprobs: bool = False,
        top_logprobs: int = 0,
        stepwise: bool = False,
        constraint: Processor | Grammar | None = None,
    ) -> None:
        self._stream: HostStream | None = None
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._source = source
        self._max_tokens = max_tokens
        self._sampler = sampler.values()
        self._constraint = constraint
        self._processor: Processor | None = None
        self._stop = [string for string in stop if string]
        self._stop_tokens = frozenset(stop_tokens)
        self._num_top = top_logprobs
        self._logprobs, self._stepwise = logprobs, stepwise or top_logprobs > 0
        self._text: tuple[TextDecoder, StopStrings] | None = None
        if (
            self._stepwise
            or max_tokens > MAX_STREAM_TOKENS
            or len(self._stop) > MAX_STOP_TEXTS
            or sum(map(len, self._stop)) > MAX_STOP_CHARACTERS
        ):
            self._decode_here()

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    def __del__(self) -> None:
        """End the stream of a loop that was left, and give back what was made for it."""
        with contextlib.suppress(Exception):  # the host may be gone
            if self._stream is not None and self._stream.is_open:
                self._source.end_stream()
            self._leave_processor()

    async def __anext__(self) -> Chunk:
        if self.finish_reason is not None:
            raise StopAsyncIteration
        return await self._next(None)

    async def _next(self, relay: Relay | None) -> Chunk:
        if len(self.token_ids) >= self._max_tokens:
            self.finish_reason = "length"
            self._leave_processor()
            return self._make_chunk("", (), ())
        if self._constraint is not None and self._processor is None:
            await self._enter_processor(self._constraint)
        while True:
            chunk = await (self._step() if self._stepwise else self._read(relay))
            if self._has_finished():
                self._leave_processor()
                return chunk
            if chunk.text or chunk.token_ids:
                return chunk

    async def text(self) -> str:
        """Return all the text that is still to come."""
        return await self._read_to_end(Relay(None, self._receive, sends=False))

    async def tokens(self) -> list[int]:
        """Return all the tokens that are still to come."""
        count = len(self.token_ids)
        await self._read_to_end(Relay(None, self._receive, sends=False))
        return self.token_ids[count:]

    async def send(self, fields: Mapping[str, object] | None = None) -> str:
        """Send what is still to come to the client, piece by piece as it comes; return it all.

        It does what a loop does that sends the text of each chunk, but the server passes the
        pieces on without waking the program for each: the tokens are in the context, and in
        ``token_ids``, once it returns. If it is cancelled, those that came until then are.

        Args:
            fields: Send bytes, each piece a JSON object with these fields and its ``text``.
        """
        return await self._read_to_end(Relay(fields, self._receive))

    async def _read_to_end(self, relay: Relay) -> str:
        """Return the text that is still to come; the program is woken at the end if possible."""
        texts: list[str] = []
        while self.finish_reason is None:
            relay.has_sent = False
            chunk = await self._next(relay)
            texts += [relay.cut_text, chunk.text]
            relay.cut_text = ""
            if chunk.text and relay.sends and not relay.has_sent:
                await relay.send(chunk.text)
        return "".join(texts)

    # ---- where tokens come from ------------------------------------------------------------

    async def _step(self) -> Chunk:
        extras = ("logprobs",) if self._logprobs else ()
        result = await self._source.step(self._sampler, self._num_top, extras)
        (token_id,) = result.tokens
        if token_id in self._stop_tokens:
            return self._end("stop", "", (), ())
        self._source.append([token_id])
        logprobs = () if result.extras is None else result.extras.logprobs
        finish = "grammar" if self._tell_processor([token_id]) else None
        chunk = self._add([token_id], logprobs, finish)
        if not self._num_top:
            return chunk
        # A probability may be too small to be told from 0.
        top = zip(result.top_ids, map(_log, result.top_probs), strict=True)
        return replace(chunk, top_logprobs=(tuple(top),))

    async def _read(self, relay: Relay | None) -> Chunk:
        stream = self._stream
        if stream is None or not stream.is_open:
            if self.token_ids:
                self._decode_here()  # what the stream before held back is lost
            try:
                stream = self._stream = self._source.open_stream(self._options())
            except BusyError:
                # Of a step that was cancelled: another one waits for that.
                self._decode_here()
                return await self._step()
        if self._text is not None:
            relay = None  # the text is made here
        values = await self._source.read_stream(stream, relay)
        if values is None:
            return Chunk("", ())
        if relay is not None:
            relay.has_sent = True
        return self._receive(values)

    def _receive(self, values: ChunkValues) -> Chunk:
        """Take what a stream has sampled into the context."""
        token_ids, text, logprobs, finish, num_written = values
        if finish == "stop-token":
            token_ids = token_ids[:-1]
        count, has_found = len(token_ids), False
        if self._text is None:
            chunk = self._take(text, token_ids, logprobs, finish)
        else:
            chunk = self._add(token_ids, logprobs, finish)
            count = len(chunk.token_ids)
            has_found = self.finish_reason is not None
        self._source.accept(token_ids[:count], num_written)
        self._tell_processor(token_ids[:count])
        if finish is not None or has_found:
            self._source.end_stream()
        return chunk

    def _has_finished(self) -> bool:
        return self.finish_reason is not None

    async def _enter_processor(self, constraint: Processor | Grammar) -> None:
        processor = constraint
        if isinstance(processor, Grammar):
            model = self._source.model.name
            processor = await Processor.create(grammar=processor, model=model)
        self._processor = processor
        *plain, _, filters = self._sampler
        self._sampler = cast("SamplerValues", (*plain, processor.number, filters))
        self._source.begin_processing(processor)

    def _tell_processor(self, token_ids: Sequence[int]) -> bool:
        """Tell it what has come into the context; say whether only the end can follow.

        Raises:
            BadArgumentError: It does not stand where the generation is.
        """
        processor = self._processor
        if processor is None:
            return False
        if processor.accept(token_ids) < len(token_ids):
            raise BadArgumentError(
                "the processor does not stand where the generation is: while that goes on, "
                "let nobody else call its accept() and rollback()"
            )
        return self._stepwise and processor.has_ended

    def _leave_processor(self) -> None:
        """Close the processor if it was made for the generation."""
        processor, self._processor = self._processor, None
        if processor is not None:
            self._source.end_processing(processor)
            if processor is not self._constraint:
                processor.close()
        self._constraint = None

    def _options(self) -> StreamOptions:
        left = self._max_tokens - len(self.token_ids)
        return StreamOptions(
            self._sampler,
            min(left, MAX_STREAM_TOKENS),
            list(self._stop_tokens),
            self._stop if self._text is None else [],
            self._logprobs,
        )

    # ---- chunks ----------------------------------------------------------------------------

    def _take(
        self,
        text: str,
        token_ids: Sequence[int],
        logprobs: Sequence[float],
        finish: str | None,
    ) -> Chunk:
        """Return a chunk whose text the host has made."""
        self.token_ids += token_ids
        if finish is not None:
            self.finish_reason = "length" if finish == "length" else "stop"
        return self._make_chunk(text, token_ids, logprobs)

    def _add(
        self, token_ids: Sequence[int], logprobs: Sequence[float], finish: str | None
    ) -> Chunk:
        """Return a chunk with the text of these tokens, or of those up to a stop string."""
        assert self._text is not None, "or the host decodes"
        decoder, strings = self._text
        texts: list[str] = []
        for count, token_id in enumerate(token_ids, 1):
            self.token_ids.append(token_id)
            text, is_stopped = strings.add(decoder.add(token_id))
            texts.append(text)
            if is_stopped:
                self.finish_reason = "stop"
                return self._make_chunk("".join(texts), token_ids[:count], logprobs)
        if finish in ("stop-token", "grammar"):
            return self._end("stop", "".join(texts), token_ids, logprobs)
        if len(self.token_ids) >= self._max_tokens:
            return self._end("length", "".join(texts), token_ids, logprobs)
        return self._make_chunk("".join(texts), token_ids, logprobs)

    def _end(
        self,
        reason: FinishReason,
        text: str,
        token_ids: Sequence[int],
        logprobs: Sequence[float],
    ) -> Chunk:
        """Release the text held back, as far as no stop string is in it."""
        assert self._text is not None, "or the host decodes"
        decoder, strings = self._text
        self.finish_reason = reason
        rest, is_stopped = strings.add(decoder.finish())
        if not is_stopped:
            rest += strings.finish()
        return self._make_chunk(text + rest, token_ids, logprobs)

    def _make_chunk(
        self, text: str, token_ids: Sequence[int], logprobs: Sequence[float]
    ) -> Chunk:
        if not self._logprobs:
            return Chunk(text, tuple(token_ids))
        return Chunk(text, tuple(token_ids), tuple(logprobs[: len(token_ids)]))

    def _decode_here(self) -> None:
        """Make the text of what is still to come in the inferlet itself."""
        if self._text is not None:
            return
        decoder = TextDecoder(self._source.model, self._source.last_tokens)
        strings = StopStrings(self._stop)
        self._text = decoder, strings
        for token_id in self.token_ids:
            strings.add(decoder.add(token_id))


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else -math.inf
