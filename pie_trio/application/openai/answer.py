"""What the answers to all kinds of requests have in common."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from pie_trio.application.openai.choices import ChoiceSoFar, new_id
from pie_trio.application.openai.failures import error_body

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pie_trio.application.openai.asked import Asked
    from pie_trio.application.openai.pieces import Piece, Usage
    from pie_trio.control.detokenize import TokenTexts
    from pie_trio.errors import PieError

__all__ = ["Answer", "EventHead", "encode_event"]


def encode_event(value: Mapping[str, Any], kind: str = "") -> bytes:
    """Return a server-sent event."""
    head = f"event: {kind}\n" if kind else ""
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return f"{head}data: {data}\n\n".encode("utf-8", "replace")


class EventHead:
    """The fields that all events of a stream begin with, encoded once.

    Args:
        fields: By name; at least one.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._start = encode_event(fields)[: -len(b"}\n\n")]

    def encode(self, rest: Mapping[str, Any]) -> bytes:
        """Return an event with these fields and others after them, of which there are some."""
        return b"%b,%b" % (self._start, encode_event(rest)[len(b"data: {") :])


class Answer(ABC):
    """The answer to one request, told as it comes or as a whole.

    Args:
        asked: What is answered.
        body: The request as it came.
        texts: Of the tokens of the model.
    """

    prefix = ""

    def __init__(
        self, asked: Asked, body: Mapping[str, Any], texts: TokenTexts
    ) -> None:
        self.asked, self.body, self.texts = asked, body, texts
        self.answer_id = new_id(self.prefix)
        self.created = int(time.time())
        self.choices = [ChoiceSoFar() for _ in range(asked.num_choices)]

    @property
    def has_logprobs(self) -> bool:
        """Whether log-probabilities are told."""
        arguments = self.asked.arguments
        return arguments.get("logprobs") not in (None, False)

    def begin(self) -> Iterable[bytes]:
        """Return what a stream begins with."""
        return ()

    def add(self, piece: Piece) -> None:
        """Take a piece."""
        self.choices[piece.choice].add(piece)

    @abstractmethod
    def stream(self, piece: Piece) -> Iterable[bytes]:
        """Take a piece, and return what a stream tells of it."""

    @abstractmethod
    def end(self, usage: Usage) -> Iterable[bytes]:
        """Return what a stream ends with."""

    def fail(self, error: PieError) -> Iterable[bytes]:
        """Return what a stream ends with when the program fails."""
        return [encode_event(error_body(error)[1])]

    @abstractmethod
    def document(self, usage: Usage) -> Mapping[str, Any]:
        """Return the whole."""


def usage_fields(usage: Usage) -> dict[str, Any]:
    """Return what was used, as chats and completions have it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def tool_call_fields(calls: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
    """Return calls as messages have them."""
    return [
        {
            "id": call_id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call_id, call in calls
    ]
