"""Answers of ``/v1/chat/completions``."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from pie_trio._version import __version__
from pie_trio.application.openai.answer import (
    Answer,
    EventHead,
    TextEvent,
    tool_call_fields,
    usage_fields,
)
from pie_trio.application.openai.choices import chat_logprobs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pie_trio.application.openai.choices import ChoiceSoFar
    from pie_trio.application.openai.pieces import Piece, Usage

__all__ = ["DONE", "ChatAnswer"]

DONE = b"data: [DONE]\n\n"


class ChatAnswer(Answer):
    """The answer to a chat."""

    prefix = "chatcmpl-"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._text_events: dict[int, TextEvent] = {}  # by choice

    def stream(self, piece: Piece) -> Iterable[bytes]:
        """Take a piece, and return the chunks that tell it."""
        choice = self.choices[piece.choice]
        is_first = not (choice.texts or choice.calls or choice.tokens)
        self.add(piece)
        is_text = not is_first and piece.text and not piece.call
        if is_text and piece.finish is None and not self.has_logprobs:
            yield self._text_event(piece.choice).encode(piece.text)
            return
        deltas = [{"role": "assistant", "content": ""}] if is_first else []
        deltas += self._deltas(choice, piece)
        for delta in deltas:
            # Tokens are told with the text that they became.
            yield self._chunk(
                piece.choice, delta, has_tokens=bool(delta.get("content"))
            )
        if piece.finish is not None:
            yield self._chunk(piece.choice, {}, finish=choice.finish, has_tokens=True)

    def end(self, usage: Usage) -> Iterable[bytes]:
        """Return the last chunks."""
        if self.asked.has_usage:
            fields: dict[str, Any] = {"choices": [], "usage": usage_fields(usage)}
            yield self._chunk_head.encode(fields)
        yield DONE

    def document(self, usage: Usage) -> Mapping[str, Any]:
        """Return the completion."""
        return {
            **self._head("chat.completion"),
            "choices": [
                {
                    "index": index,
                    "message": self._message(choice),
                    "logprobs": self._logprobs(choice.tokens),
                    "finish_reason": choice.finish,
                }
                for index, choice in enumerate(self.choices)
            ],
            "usage": usage_fields(usage),
        }

    def _deltas(self, choice: ChoiceSoFar, piece: Piece) -> Iterator[dict[str, Any]]:
        if piece.text:
            yield {"content": piece.text}
        if piece.call is not None:
            (fields,) = tool_call_fields(choice.calls[-1:])
            place = {"index": len(choice.calls) - 1}
            arguments = fields["function"]["arguments"]
            fields["function"]["arguments"] = ""
            yield {"tool_calls": [place | fields]}
            yield {"tool_calls": [place | {"function": {"arguments": arguments}}]}

    def _chunk(
        self,
        index: int,
        delta: Mapping[str, Any],
        *,
        finish: str | None = None,
        has_tokens: bool,
    ) -> bytes:
        tokens = self.choices[index].take_tokens() if has_tokens else ()
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs(tokens) if tokens else None,
            "finish_reason": finish,
        }
        usage = {"usage": None} if self.asked.has_usage else {}
        return self._chunk_head.encode({"choices": [choice], **usage})

    def _text_event(self, index: int) -> TextEvent:
        if index not in self._text_events:
            empty = self._chunk(index, {"content": ""}, has_tokens=False)
            self._text_events[index] = TextEvent(empty)
        return self._text_events[index]

    @cached_property
    def _chunk_head(self) -> EventHead:
        return EventHead(self._head("chat.completion.chunk"))

    def _message(self, choice: ChoiceSoFar) -> dict[str, Any]:
        text = choice.text
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if choice.calls and not text else text,
            "refusal": None,
            "annotations": [],
        }
        if choice.calls:
            message["tool_calls"] = tool_call_fields(choice.calls)
        return message

    def _logprobs(self, tokens: Any) -> dict[str, Any] | None:
        if not self.has_logprobs:
            return None
        return {"content": chat_logprobs(tokens, self.texts), "refusal": None}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.answer_id,
            "object": kind,
            "created": self.created,
            "model": self.asked.model,
            "system_fingerprint": f"pie-{__version__}",
        }
