"""Conditions under which a generation is left, which can be put together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from inferlet_py._generation import Chunk
from inferlet_py._timeouts import current_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable

__all__ = [
    "Progress",
    "StopCondition",
    "Until",
    "after_lines",
    "after_seconds",
    "after_tokens",
    "at_pattern",
    "until",
]

PieceT = TypeVar("PieceT", bound=Chunk | str)


@dataclass(frozen=True)
class Progress:
    """How far a generation is.

    Attributes:
        text: All of it so far.
        new_text: What came last.
        num_tokens: So far; of pieces that are plain text, the number of pieces.
        seconds: Since the first piece was asked for.
    """

    text: str
    new_text: str
    num_tokens: int
    seconds: float


class StopCondition:
    """Says whether to stop; ``a | b``, ``a & b`` and ``~a`` are conditions too.

    Args:
        is_met: Gets the progress after each piece.
    """

    def __init__(self, is_met: Callable[[Progress], bool]) -> None:
        self._is_met = is_met

    def __call__(self, progress: Progress) -> bool:
        return self._is_met(progress)

    def __or__(self, other: StopCondition) -> StopCondition:
        return StopCondition(lambda progress: self(progress) or other(progress))

    def __and__(self, other: StopCondition) -> StopCondition:
        return StopCondition(lambda progress: self(progress) and other(progress))

    def __invert__(self) -> StopCondition:
        return StopCondition(lambda progress: not self(progress))


def after_tokens(count: int) -> StopCondition:
    """Stop once there are so many tokens; a chunk may bring some more."""
    return StopCondition(lambda progress: progress.num_tokens >= count)


def after_seconds(seconds: float) -> StopCondition:
    """Stop at the first piece after so many seconds; ``move_on_after`` does not wait for one."""
    return StopCondition(lambda progress: progress.seconds >= seconds)


def after_lines(count: int) -> StopCondition:
    """Stop once so many lines have ended."""
    return StopCondition(lambda progress: progress.text.count("\n") >= count)


def at_pattern(pattern: str | re.Pattern[str]) -> StopCondition:
    """Stop once a regular expression is found in the text. The text holds what was found."""
    compiled = re.compile(pattern)
    return StopCondition(lambda progress: compiled.search(progress.text) is not None)


class Until(Generic[PieceT]):
    """An asynchronous iterator over the pieces up to the one that meets a condition.

    Made by :func:`until`.

    Attributes:
        is_met: Whether the condition was met, rather than that there was no more.
    """

    def __init__(self, source: AsyncIterable[PieceT], condition: StopCondition) -> None:
        self.is_met = False
        self._source: AsyncIterator[PieceT] = aiter(source)
        self._condition = condition
        self._text = ""
        self._num_tokens = 0
        self._began: float | None = None

    def __aiter__(self) -> AsyncIterator[PieceT]:
        return self

    async def __anext__(self) -> PieceT:
        if self.is_met:
            raise StopAsyncIteration
        if self._began is None:
            self._began = current_time()
        piece = await anext(self._source)
        text = _text_of(piece)
        self._text += text
        self._num_tokens += len(piece.token_ids) if isinstance(piece, Chunk) else 1
        seconds = current_time() - self._began
        progress = Progress(self._text, text, self._num_tokens, seconds)
        self.is_met = self._condition(progress)
        return piece

    async def text(self) -> str:
        """Return all the text that is still to come."""
        return "".join([_text_of(piece) async for piece in self])


def _text_of(piece: Chunk | str) -> str:
    return piece.text if isinstance(piece, Chunk) else piece


def until(source: AsyncIterable[PieceT], condition: StopCondition) -> Until[PieceT]:
    """Go on with a generation, or with pieces of text, until a condition is met.

    ``await until(ctx.generate(), after_lines(3) | after_seconds(2)).text()``. The context then
    holds the tokens of the chunks up to there.
    """
    return Until(source, condition)
