"""A reply in progress: turns of the model, with the tools that it calls between them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Literal

from inferlet_py._tool_calls import ToolCallParser
from inferlet_py._tools import ToolCall, ToolResult, run_tools

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from inferlet_py._chat import Chat
    from inferlet_py._generation import Generation

__all__ = ["Reply"]


class Reply:
    """An asynchronous iterator over pieces of text. Made by ``Chat.reply``.

    One that is left early, or cancelled, leaves the messages as they were before the turn that it
    was in.

    Attributes:
        results: Of the tools that were called so far, in order.
        calls: That were not made, since there were too many turns.
        finish_reason: ``stop``; ``length`` if the last turn had too many tokens, ``rounds`` if
            there were too many turns; None before the end.
    """

    def __init__(
        self, chat: Chat, *, max_rounds: int, options: Mapping[str, Any]
    ) -> None:
        self.results: list[ToolResult] = []
        self.calls: list[ToolCall] = []
        self.finish_reason: Literal["stop", "length", "rounds"] | None = None
        self._chat, self._options = chat, options
        self._num_left = max_rounds
        self._pieces: deque[str] = deque()
        self._turn: _Turn | None = None

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        while not self._pieces:
            if self.finish_reason is not None:
                raise StopAsyncIteration
            await self._advance()
        return self._pieces.popleft()

    async def text(self) -> str:
        """Return all the text that is still to come."""
        return "".join([piece async for piece in self])

    async def _advance(self) -> None:
        if self._turn is None:
            prompt = await self._chat.prepare()
            generation = self._chat.context.generate(**self._options)
            self._turn = _Turn(self._chat, prompt, generation)
        turn = self._turn
        try:
            chunk = await anext(turn.generation)
        except StopAsyncIteration:
            self._pieces.extend(turn.take(turn.finish()))
            await self._end_turn(turn)
        else:
            self._pieces.extend(turn.take(turn.add(chunk.text)))

    async def _end_turn(self, turn: _Turn) -> None:
        chat = self._chat
        self._turn, self._num_left = None, self._num_left - 1
        results: list[ToolResult] = []
        if turn.calls and self._num_left > 0:
            results = await run_tools(turn.calls, chat.tools)
        # All at once, so that a cancelled call leaves no question without its answer.
        chat.messages.append(turn.message())
        chat.messages += [result.message() for result in results]
        self.results += results
        reason = turn.generation.finish_reason
        has_stopped_at_text = bool(self._options.get("stop")) and reason == "stop"
        chat.settle(turn.prompt + turn.raw, is_exact=not has_stopped_at_text)
        if results:
            return
        self.calls = turn.calls
        self.finish_reason = "rounds" if turn.calls else reason


class _Turn:
    """One turn of the model.

    Attributes:
        prompt: What it goes on from.
        generation: What it says.
        raw: That as text, calls included.
        calls: What it has called.
    """

    def __init__(self, chat: Chat, prompt: str, generation: Generation) -> None:
        self.prompt, self.generation = prompt, generation
        self.raw = ""
        self.calls: list[ToolCall] = []
        self._is_mistral = chat.tool_format == "mistral"
        self._shown: list[str] = []
        self._parser = (
            ToolCallParser(chat.tool_format, chat.tools) if chat.tools else None
        )

    def add(self, text: str) -> Sequence[str | ToolCall]:
        """Return what became certain by more text."""
        self.raw += text
        return [text] if self._parser is None else self._parser.add(text)

    def finish(self) -> Sequence[str | ToolCall]:
        """Return the rest."""
        return [] if self._parser is None else self._parser.finish()

    def take(self, items: Sequence[str | ToolCall]) -> list[str]:
        """Keep the calls, and return the texts."""
        texts = [item for item in items if isinstance(item, str) and item]
        self._shown += texts
        for item in items:
            if isinstance(item, ToolCall):
                self.calls.append(self._with_id(item))
        return texts

    def message(self) -> dict[str, Any]:
        """Return the message of the assistant."""
        text = "".join(self._shown)
        if not self.calls:
            return {"role": "assistant", "content": text}
        if any(call.error for call in self.calls):
            # As it was written, so that the model sees what the error is about.
            return {"role": "assistant", "content": self.raw}
        calls = [call.message() for call in self.calls]
        return {"role": "assistant", "content": text, "tool_calls": calls}

    def _with_id(self, call: ToolCall) -> ToolCall:
        """Return a call with the nine letters or digits that Mistral's templates insist on."""
        if call.call_id or not self._is_mistral:
            return call
        call_id = f"{len(self.calls):09d}"
        return ToolCall(call.name, call.arguments, call_id, call.error)
