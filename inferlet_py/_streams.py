"""Decode streams over contexts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferlet_py._errors import LimitError
from inferlet_py._host import StreamValues, get_host
from inferlet_py._numbers import Numbers
from inferlet_py._tasks import wait_to_take

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inferlet_py._generation import StreamOptions
    from inferlet_py._host import ChunkValues, Envelope
    from inferlet_py._models import Model

__all__ = ["HostStream"]

MAX_UNREAD = 32
"""So many tokens may be computed in vain if nobody reads them."""

_numbers = Numbers()


class HostStream:
    """A decode stream of the host.

    Args:
        model: Of the context.
        tokens: The pending tokens.
        start: The slot of the first of them.
        pages: Of the context, with those that the stream will write.
        options: When it ends.
        adapter: Of the context.
        gap: By how much the host's slots are fewer, since pages were dropped.

    Attributes:
        is_open: It was not closed.
    """

    def __init__(
        self,
        model: Model,
        tokens: Sequence[int],
        start: int,
        pages: list[int],
        options: StreamOptions,
        adapter: str = "",
        gap: int = 0,
    ) -> None:
        self._number = next(_numbers)
        request = StreamValues(
            list(tokens),
            list(range(start, start + len(tokens))),
            pages,
            start - gap,
            options.sampler,
            options.max_tokens,
            options.stop_tokens,
            options.stop_texts,
            options.logprobs,
            MAX_UNREAD,
            adapter,
        )
        get_host().start_stream(model.queue, self._number, request)
        self.is_open = True

    async def read(self) -> ChunkValues:
        """Wait for something to read."""
        host = get_host()
        ticket = host.read_stream(self._number)
        await wait_to_take(ticket)
        return host.take_chunk(ticket)

    async def relay(self, envelope: Envelope | None) -> ChunkValues:
        """Let the host send the text to the client; return all there was at the end.

        If this is cancelled, :meth:`end_relay` returns what there was until then.
        """
        host = get_host()
        ticket = host.relay_stream(self._number, envelope)
        await wait_to_take(ticket)
        return host.take_chunk(ticket)

    async def collect(self) -> ChunkValues:
        """Wait for the end; return all there was, or a part if that is too much to keep at once.

        If this is cancelled, :meth:`end_relay` returns what there was until then.
        """
        host = get_host()
        try:
            ticket = host.collect_stream(self._number)
        except LimitError:
            return await self.read()
        await wait_to_take(ticket)
        return host.take_chunk(ticket)

    def end_relay(self) -> ChunkValues:
        """Return what was relayed, or collected, up to now, and let the stream go on without a reader."""
        return get_host().end_relay(self._number)

    def close(self) -> None:
        """End it; once."""
        self.is_open = False
        get_host().close_stream(self._number)
