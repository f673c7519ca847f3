"""Answers of ``/v1/completions`` and ``/v1/embeddings``."""

from __future__ import annotations

import base64
import math
from array import array
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pie_trio._version import __version__
from pie_trio.application.openai.answer import (
    Answer,
    EventHead,
    TextEvent,
    usage_fields,
)
from pie_trio.application.openai.chat_answer import DONE
from pie_trio.application.openai.choices import token_text
from pie_trio.application.openai.failures import OpenAIError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pie_trio.application.openai.pieces import Piece, TokenLogprob, Usage
    from pie_trio.application.openai.requests import EmbeddingsAsked

__all__ = ["CompletionAnswer", "EmbeddingsAnswer"]


class CompletionAnswer(Answer):
    """The answer to texts."""

    prefix = "cmpl-"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._text_events: dict[int, TextEvent] = {}  # by choice

    def stream(self, piece: Piece) -> Iterable[bytes]:
        """Take a piece, and return the chunk that tells it."""
        choice = self.choices[piece.choice]
        self.add(piece)
        if not piece.text and piece.finish is None:
            return  # tokens are told with the text that they became
        if choice.finish is None and not self.has_logprobs:
            yield self._text_event(piece.choice).encode(piece.text)
            return
        first = choice.num_told
        tokens = choice.take_tokens()
        yield self._event(
            piece.choice,
            piece.text,
            self._logprobs(piece.choice, tokens, first) if tokens else None,
        )

    def end(self, usage: Usage) -> Iterable[bytes]:
        """Return the last chunks."""
        if self.asked.has_usage:
            fields: dict[str, Any] = {"choices": [], "usage": usage_fields(usage)}
            yield self._event_head.encode(fields)
        yield DONE

    def document(self, usage: Usage) -> Mapping[str, Any]:
        """Return the completion."""
        return {
            **self._head(),
            "choices": [
                {
                    "text": choice.text,
                    "index": index,
                    "logprobs": self._logprobs(index, choice.tokens, 0),
                    "finish_reason": choice.finish,
                }
                for index, choice in enumerate(self.choices)
            ],
            "usage": usage_fields(usage),
        }

    def _logprobs(
        self, index: int, tokens: Sequence[TokenLogprob], first: int
    ) -> dict[str, Any] | None:
        if not self.has_logprobs:
            return None
        all_tokens = self.choices[index].tokens
        names = [token_text(self.texts, one.token_id) for one in all_tokens]
        offsets = [0]
        for name in names:
            offsets.append(offsets[-1] + len(name))
        here = slice(first, first + len(tokens))
        return {
            "tokens": names[here],
            "token_logprobs": [one.logprob for one in tokens],
            "top_logprobs": [
                {token_text(self.texts, token_id): p for token_id, p in one.top}
                for one in tokens
            ],
            "text_offset": offsets[here],
        }

    def _text_event(self, index: int) -> TextEvent:
        if index not in self._text_events:
            self._text_events[index] = TextEvent(self._event(index, "", None))
        return self._text_events[index]

    def _event(
        self, index: int, text: str, logprobs: Mapping[str, Any] | None
    ) -> bytes:
        told = {
            "text": text,
            "index": index,
            "logprobs": logprobs,
            "finish_reason": self.choices[index].finish,
        }
        usage = {"usage": None} if self.asked.has_usage else {}
        return self._event_head.encode({"choices": [told], **usage})

    @cached_property
    def _event_head(self) -> EventHead:
        return EventHead(self._head())

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.answer_id,
            "object": "text_completion",
            "created": self.created,
            "model": self.asked.model,
            "system_fingerprint": f"pie-{__version__}",
        }


class EmbeddingsAnswer(Answer):
    """Embeddings, one for each text; they are not streamed."""

    def __init__(self, asked: EmbeddingsAsked, *rest: Any) -> None:
        super().__init__(asked, *rest)
        self._wanted = asked
        self._found: dict[int, Sequence[float]] = {}

    def add(self, piece: Piece) -> None:
        """Take an embedding."""
        if piece.embedding:
            self._found[piece.choice] = piece.embedding

    def stream(self, piece: Piece) -> Iterable[bytes]:
        """Take an embedding."""
        self.add(piece)
        return ()

    def end(self, usage: Usage) -> Iterable[bytes]:
        """Return nothing."""
        return ()

    def document(self, usage: Usage) -> Mapping[str, Any]:
        """Return the embeddings.

        Raises:
            OpenAIError: The program has sent none for a text, or one that is too short.
        """
        data = [
            {"object": "embedding", "index": index, "embedding": self._encode(index)}
            for index in range(self.asked.num_choices)
        ]
        total = usage.prompt_tokens
        return {
            "object": "list",
            "data": data,
            "model": self.asked.model,
            "usage": {"prompt_tokens": total, "total_tokens": total},
        }

    def _encode(self, index: int) -> str | list[float]:
        values = self._found.get(index)
        if values is None:
            raise OpenAIError(
                f"the program has sent no embedding of input {index}",
                code="program_failed",
                status=500,
            )
        wanted = self._wanted.dimensions
        if wanted is not None and wanted > len(values):
            raise OpenAIError(
                f"invalid value for 'dimensions': an embedding of this model has "
                f"{len(values)}, got {wanted}",
                param="dimensions",
                code="invalid_value",
            )
        if wanted is not None and wanted < len(values):
            size = math.hypot(*values[:wanted]) or 1.0
            values = [value / size for value in values[:wanted]]
        if not self._wanted.is_base64:
            return list(values)
        numbers = array("f", values)
        assert numbers.itemsize == 4, "a float of C has 32 bits on all that runs this"
        return base64.b64encode(numbers.tobytes()).decode()
