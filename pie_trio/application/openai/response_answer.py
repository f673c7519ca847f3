"""Answers of ``/v1/responses``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pie_trio.application.openai.answer import Answer, encode_event
from pie_trio.application.openai.failures import error_body
from pie_trio.application.openai.response_items import (
    MessageItem,
    call_events,
    make_call_item,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pie_trio.application.openai.pieces import Piece, TokenLogprob, Usage
    from pie_trio.errors import PieError

__all__ = ["ResponseAnswer"]

EventFields = dict[str, Any]

TOO_LONG = {"reason": "max_output_tokens"}
ECHOED: Mapping[str, object] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "text": {},
}
"""What a response repeats of its request, and what it says where that says nothing."""
USUAL_FORMAT = {"type": "text"}
UNSAID: dict[str, Any] = {"description": None, "parameters": None, "strict": False}
"""Of a tool."""


class ResponseAnswer(Answer):
    """The answer to a response, with its events."""

    prefix = "resp_"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._items: list[dict[str, Any]] = []
        self._message: MessageItem | None = None
        self._tokens: list[TokenLogprob] = []  # whose text is still to come
        self._num_events = 0
        self._is_cut = False

    def begin(self) -> Iterable[bytes]:
        """Return the first two events."""
        for kind in ("response.created", "response.in_progress"):
            yield self._encode({"type": kind, "response": self._fields("in_progress")})

    def add(self, piece: Piece) -> None:
        """Take a piece."""
        for _ in self._take(piece):
            pass

    def stream(self, piece: Piece) -> Iterable[bytes]:
        """Take a piece, and return the events that tell it."""
        return [self._encode(event) for event in self._take(piece)]

    def end(self, usage: Usage) -> Iterable[bytes]:
        """Return the last event."""
        kind = f"response.{self._status}"
        yield self._encode({"type": kind, "response": self.document(usage)})

    def fail(self, error: PieError) -> Iterable[bytes]:
        """Return the events of a failure."""
        _, body = error_body(error)
        told = {"code": "server_error", "message": body["error"]["message"]}
        failed = self._fields("failed") | {"error": told}
        yield self._encode({"type": "response.failed", "response": failed})

    def document(self, usage: Usage) -> Mapping[str, Any]:
        """Return the response."""
        return self._fields(self._status) | {
            "completed_at": None if self._is_cut else int(time.time()),
            "incomplete_details": TOO_LONG if self._is_cut else None,
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {
                    "cached_tokens": usage.cached_tokens,
                    "cache_write_tokens": 0,  # of what a client would pay for
                },
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            },
        }

    @property
    def _status(self) -> str:
        return "incomplete" if self._is_cut else "completed"

    def _take(self, piece: Piece) -> Iterator[EventFields]:
        self._tokens += piece.tokens
        if piece.text:
            if self._message is None:
                self._message = MessageItem(len(self._items), self.texts)
                yield from self._message.begin()
            yield from self._message.add(piece.text, self._take_tokens())
        if piece.call is not None:
            yield from self._end_message("completed")
            item = make_call_item(piece.call)
            yield from call_events(item, len(self._items))
            self._items.append(item)
        if piece.finish is not None:
            self._is_cut = piece.finish == "length"
            if self._message is None and not self._items:  # an empty one
                self._message = MessageItem(0, self.texts)
                yield from self._message.begin()
            yield from self._end_message(self._status)

    def _end_message(self, status: str) -> Iterator[EventFields]:
        message, self._message = self._message, None
        if message is not None:
            yield from message.end(status, self._take_tokens())
            self._items.append(message.fields(status))

    def _take_tokens(self) -> list[TokenLogprob]:
        tokens, self._tokens = self._tokens, []
        return tokens

    def _fields(self, status: str) -> dict[str, Any]:
        echoed: dict[str, Any] = {
            name: usual if self.body.get(name) is None else self.body[name]
            for name, usual in ECHOED.items()
        }
        told = {k: v for k, v in echoed["text"].items() if v is not None}
        echoed["text"] = {"format": USUAL_FORMAT, **told}
        echoed["tools"] = [UNSAID | one for one in self.body.get("tools") or ()]
        return {
            "id": self.answer_id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": self.asked.model,
            "output": list(self._items),
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            **echoed,
        }

    def _encode(self, event: EventFields) -> bytes:
        event["sequence_number"] = self._num_events
        self._num_events += 1
        return encode_event(event, event["type"])
