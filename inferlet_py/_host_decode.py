"""``decode.wit`` as the SDK sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from inferlet_py._binding import HostInterface
from inferlet_py._host_forward import make_sampler

if TYPE_CHECKING:
    from inferlet_py._binding import Adapters
    from inferlet_py._host_forward import SamplerValues

__all__ = ["DECODE", "ChunkValues", "DecodeHost", "Envelope", "StreamValues"]

ChunkValues = tuple[list[int], str, list[float], str | None, int]
"""Tokens, text, log-probabilities, finish reason, written slots: the WIT record ``chunk``."""

Envelope = tuple[str, str]
"""What stands before and after a piece of text: the WIT record ``envelope``."""


@dataclass(frozen=True)
class StreamValues:
    """Where a stream starts and when it ends: the WIT record ``stream-request``."""

    tokens: list[int]
    positions: list[int]
    pages: list[int]
    start: int
    sampler: SamplerValues
    max_tokens: int
    stop_tokens: list[int]
    stop_texts: list[str]
    logprobs: bool
    max_unread: int
    adapter: str = ""


class DecodeHost(Protocol):
    """Decode streams; see ``decode.wit``."""

    def start_stream(self, queue: int, handle: int, request: StreamValues) -> None: ...
    def read_stream(self, handle: int) -> int: ...
    def take_chunk(self, ticket: int) -> ChunkValues: ...
    def relay_stream(self, handle: int, envelope: Envelope | None) -> int: ...
    def collect_stream(self, handle: int) -> int: ...
    def end_relay(self, handle: int) -> ChunkValues: ...
    def stop_stream(self, handle: int) -> None: ...
    def fork_stream(
        self, source: int, target: int, pages: list[int], sampler: SamplerValues
    ) -> int: ...
    def close_stream(self, handle: int) -> None: ...


def _adapt(decode: Any) -> Adapters:
    def start_stream(queue: int, handle: int, request: StreamValues) -> None:
        made = decode.StreamRequest(
            request.tokens,
            request.positions,
            request.pages,
            request.start,
            make_sampler(decode.forward, request.sampler),
            request.max_tokens,
            request.stop_tokens,
            request.stop_texts,
            request.logprobs,
            request.max_unread,
            request.adapter,
        )
        decode.start_stream(queue, handle, made)

    def take_chunk(ticket: int) -> ChunkValues:
        return _read(decode.take_chunk(ticket))

    def relay_stream(handle: int, envelope: Envelope | None) -> int:
        made = None if envelope is None else decode.Envelope(*envelope)
        ticket: int = decode.relay_stream(handle, made)
        return ticket

    def end_relay(handle: int) -> ChunkValues:
        return _read(decode.end_relay(handle))

    def fork_stream(
        source: int, target: int, pages: list[int], sampler: SamplerValues
    ) -> int:
        made = make_sampler(decode.forward, sampler)
        ticket: int = decode.fork_stream(source, target, pages, made)
        return ticket

    return {
        "start_stream": start_stream,
        "take_chunk": take_chunk,
        "relay_stream": relay_stream,
        "end_relay": end_relay,
        "fork_stream": fork_stream,
    }


def _read(chunk: Any) -> ChunkValues:
    finish = chunk.finish
    reason = None if finish is None else finish.name.lower().replace("_", "-")
    return chunk.tokens, chunk.text, chunk.logprobs, reason, chunk.num_written


DECODE = HostInterface("decode", DecodeHost, _adapt)
