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

__all__ = ["Answer", "EventHead", "TextEvent", "encode_event"]

# Made once: json.dumps makes one at each call that has options.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def encode_event(value: Mapping[str, Any], kind: str = "") -> bytes:
    """Return a server-sent event."""
    head = f"event: {kind}\n" if kind else ""
    return f"{head}data: {_encode(value)}\n\n".encode("utf-8", "replace")


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


class TextEvent:
    """An event that is told again and again with another text; all around it is encoded once.

    Args:
        event: With an empty text, the last one in it.
    """

    def __init__(self, event: bytes) -> None:
        self._before, empty, self._after = event.rpartition(b'""')
        assert empty, "the event has an empty text"

    def encode(self, text: str) -> bytes:
        """Return the event with a text."""
        data = _encode(text).encode("utf-8", "replace")
        return b"%b%b%b" % (self._before, data, self._after)


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
        wanted = self.asked.arguments.get("logprobs")
        # 0 of a completion is those of its tokens alone.
        return wanted is not None and wanted is not False

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
