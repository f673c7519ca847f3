"""What a decode stream has sampled: text, limits, and what its reader has not taken yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from pie_trio.control.detokenize import Detokenizer, StopTexts
from pie_trio.engine_api import NO_PROCESSOR, OutputSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pie_trio.control.detokenize import TokenTexts
    from pie_trio.control.streams import StreamRequest
    from pie_trio.engine_api import SamplerSpec

__all__ = ["FinishReason", "StreamOutput", "Unread"]

FinishReason = Literal["length", "stop-token", "stop-text", "stopped", "grammar"]


class Unread(NamedTuple):
    """What a reader takes; see the record ``chunk`` of ``decode.wit``."""

    token_ids: list[int]
    text: str
    logprobs: list[float]
    finish: FinishReason | None


class StreamOutput:
    """What a stream has sampled.

    Attributes:
        num_tokens: All of them.
        processor: The stream's own, by the engine's number, or ``NO_PROCESSOR``.
        finish: Why it ended; None while it goes on, or if it failed.
        has_ended: The end was read.
    """

    def __init__(
        self,
        wanted: StreamRequest,
        texts: TokenTexts,
        processor: int = NO_PROCESSOR,
    ) -> None:
        """Begin with nothing; ``processor`` is the stream's own, by the engine's number."""
        self.num_tokens = 0
        self.finish: FinishReason | None = None
        self.has_ended = False
        self._limit, self._max_unread = wanted.max_tokens, wanted.max_unread
        self._stop_tokens = wanted.stop_tokens
        self._sampler, self._logprobs_wanted = wanted.sampler, wanted.logprobs
        self.processor = processor
        # What is in slots before those of the request is taken for text.
        is_first = wanted.start == 0 and not texts.is_any_shown(
            wanted.token_ids.tolist()
        )
        self._text = Detokenizer(texts, is_first=is_first)
        self._stops = StopTexts(wanted.stop_texts)
        self._row = max(len(wanted.token_ids) - 1, 0)
        self._clear()
        self._failure: Exception | None = None
        self.specs = (self._spec(0),)

    @property
    def first_spec(self) -> OutputSpec:
        """What the first forward, of several tokens, is to return."""
        return self._spec(self._row)

    @property
    def is_readable(self) -> bool:
        """There is something to read."""
        return (
            bool(self._tokens) or self.finish is not None or self._failure is not None
        )

    @property
    def has_failed(self) -> bool:
        """Nothing but an error is left to read."""
        is_empty = not self._tokens and not self._pieces
        return self._failure is not None and is_empty

    @property
    def num_left(self) -> int:
        """Most tokens that may still come."""
        return self._limit - self.num_tokens

    @property
    def may_go_on(self) -> bool:
        """Whatever the next token is, unless it stops the stream another one is to follow."""
        has_room = len(self._tokens) + 1 < self._max_unread
        return self.finish is None and self.num_left > 1 and has_room

    @property
    def is_full(self) -> bool:
        """Nothing more is to be sampled before something was read."""
        return len(self._tokens) >= self._max_unread

    def add(
        self, token_id: int, logprobs: NDArray[np.float32], *, has_ended: bool = False
    ) -> None:
        """Take the next token, which may be the last one: the grammar may have ended."""
        self.num_tokens += 1
        self._tokens.append(token_id)
        if self._logprobs_wanted:
            self._logprobs.append(float(logprobs[0]))
        if token_id in self._stop_tokens:
            self.end("stop-token")
            return
        text, is_found = self._stops.add(self._text.add(token_id))
        if text:
            self._pieces.append(text)
        if is_found:
            self.finish = "stop-text"
        elif has_ended:
            self.end("grammar")
        elif self.num_tokens >= self._limit:
            self.end("length")

    def end(self, reason: FinishReason) -> None:
        """Let it end, and release the text held back, as far as no stop text is in it."""
        self.finish = reason
        self._release()

    def fail(self, error: Exception) -> None:
        """Let the reader have an error after everything else."""
        self._failure = error
        self._release()

    def abandon(self, error: Exception) -> None:
        """Let the reader have an error instead of everything else."""
        self._clear()
        self._failure = error

    def take(self) -> Unread:
        """Return what was not read yet.

        Raises:
            Exception: There is nothing more, because the stream has failed.
        """
        if self.has_failed:
            failure, self._failure = self._failure, None
            assert failure is not None, "it has failed"
            self.has_ended = True
            raise failure
        unread = Unread(
            self._tokens, "".join(self._pieces), self._logprobs, self.finish
        )
        self.has_ended = self.has_ended or self.finish is not None
        self._clear()
        return unread

    def fork(self, sampler: SamplerSpec, processor: int) -> StreamOutput:
        """Return another one that goes on from here, with nothing unread."""
        copy = StreamOutput.__new__(StreamOutput)
        for name in (
            *("num_tokens", "finish", "has_ended"),
            *("_limit", "_max_unread", "_stop_tokens", "_logprobs_wanted", "_row"),
        ):
            setattr(copy, name, getattr(self, name))
        copy._sampler, copy.processor, copy._failure = sampler, processor, None
        copy._text, copy._stops = self._text.fork(), self._stops.fork()
        copy._clear()
        copy.specs = (copy._spec(0),)
        return copy

    def _spec(self, row: int) -> OutputSpec:
        return OutputSpec(
            np.array([row], np.int32),
            self._sampler,
            logprobs=self._logprobs_wanted,
            processor=self.processor,
            accept_sampled=self.processor != NO_PROCESSOR,
        )

    def _release(self) -> None:
        rest, is_found = self._stops.add(self._text.finish())
        if not is_found:
            rest += self._stops.finish()
        if rest:
            self._pieces.append(rest)

    def _clear(self) -> None:
        self._tokens: list[int] = []
        self._pieces: list[str] = []
        self._logprobs: list[float] = []
