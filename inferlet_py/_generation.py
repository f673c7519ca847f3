"""A generation in progress: the loop over a context, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from inferlet_py._text import StopStrings, TextDecoder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from inferlet_py._context import Context
    from inferlet_py._host import SamplerValues
    from inferlet_py._sampling import Sampler

    Step = Callable[
        [SamplerValues | None, int],
        Awaitable[tuple[Sequence[int], Sequence[int], Sequence[float]]],
    ]

__all__ = ["Chunk", "FinishReason", "Generation"]

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Chunk:
    """Newly generated tokens.

    Attributes:
        text: What became certain by them; empty while a character or a stop string is open.
        token_ids: The tokens.
    """

    text: str
    token_ids: tuple[int, ...]


class Generation:
    """An asynchronous iterator over chunks. Made by ``Context.generate``.

    Attributes:
        token_ids: Generated so far.
        finish_reason: ``stop`` or ``length`` once it has ended, None before.
    """

    def __init__(
        self,
        context: Context,
        step: Step,
        *,
        max_tokens: int,
        sampler: Sampler,
        stop: Sequence[str],
        stop_tokens: Sequence[int],
    ) -> None:
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._context, self._step = context, step
        self._max_tokens = max_tokens
        self._sampler = sampler.values()
        self._stop_tokens = frozenset(stop_tokens)
        self._decoder = TextDecoder(context.model, context.token_ids)
        self._stop_strings = StopStrings(stop)

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        if self.finish_reason is not None:
            raise StopAsyncIteration
        if len(self.token_ids) >= self._max_tokens:
            return self._end("length", "")
        (token_id,), _, _ = await self._step(self._sampler, 0)
        if token_id in self._stop_tokens:
            return self._end("stop", "")
        self._context.append([token_id])
        self.token_ids.append(token_id)
        text, is_stopped = self._stop_strings.add(self._decoder.add(token_id))
        if is_stopped:
            self.finish_reason = "stop"
        elif len(self.token_ids) == self._max_tokens:
            return self._end("length", text, token_id)
        return Chunk(text, (token_id,))

    async def text(self) -> str:
        """Return all the text that is still to come."""
        return "".join([chunk.text async for chunk in self])

    async def tokens(self) -> list[int]:
        """Return all the tokens that are still to come."""
        return [token async for chunk in self for token in chunk.token_ids]

    def _end(self, reason: FinishReason, text: str, *token_ids: int) -> Chunk:
        """Release the text held back, as far as no stop string is in it."""
        self.finish_reason = reason
        rest, is_stopped = self._stop_strings.add(self._decoder.finish())
        if not is_stopped:
            rest += self._stop_strings.finish()
        return Chunk(text + rest, token_ids)
