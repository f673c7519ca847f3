"""Choices as they grow, and how tokens with their log-probabilities look."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pie_trio.application.openai.pieces import (
        Call,
        FinishReason,
        Piece,
        TokenLogprob,
    )
    from pie_trio.control.detokenize import TokenTexts

__all__ = ["ChoiceSoFar", "chat_logprobs", "new_call_id", "new_id", "token_text"]

CALL_ID_CHARACTERS = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789"
CALL_ID_LENGTH = 9
"""With so many letters or digits, Mistral's templates take it when it comes back."""


def new_id(prefix: str) -> str:
    """Return a name that nothing else has."""
    return f"{prefix}{secrets.token_hex(16)}"


def new_call_id() -> str:
    """Return a name for a call."""
    return "".join(secrets.choice(CALL_ID_CHARACTERS) for _ in range(CALL_ID_LENGTH))


@dataclass
class ChoiceSoFar:
    """One choice, up to now.

    Attributes:
        texts: Said.
        tokens: Chosen.
        num_told: Of the tokens, how many a stream has told.
        calls: Made, with their ids.
        finish: Why it ended.
    """

    texts: list[str] = field(default_factory=list[str])
    tokens: list[TokenLogprob] = field(default_factory=list["TokenLogprob"])
    num_told: int = 0
    calls: list[tuple[str, Call]] = field(default_factory=list[tuple[str, "Call"]])
    finish: FinishReason | None = None

    def add(self, piece: Piece) -> None:
        """Append a piece."""
        if piece.text:
            self.texts.append(piece.text)
        self.tokens += piece.tokens
        if piece.call is not None:
            self.calls.append((piece.call.call_id or new_call_id(), piece.call))
        if piece.finish is not None:
            self.finish = piece.finish
            if self.calls and piece.finish == "stop":
                self.finish = "tool_calls"

    def take_tokens(self) -> Sequence[TokenLogprob]:
        """Return the tokens that a stream has not told, and count them as told."""
        found = self.tokens[self.num_told :]
        self.num_told = len(self.tokens)
        return found

    @property
    def text(self) -> str:
        """All that was said."""
        return "".join(self.texts)


def token_text(texts: TokenTexts, token_id: int) -> str:
    """Return what a token adds to a text; U+FFFD for parts of characters."""
    return texts.inside(token_id).decode("utf-8", "replace")


def chat_logprobs(
    tokens: Sequence[TokenLogprob], texts: TokenTexts
) -> list[dict[str, Any]]:
    """Return tokens as chats and responses have them."""

    def show(token_id: int, logprob: float) -> dict[str, Any]:
        raw = texts.inside(token_id)
        text = raw.decode("utf-8", "replace")
        return {"token": text, "logprob": logprob, "bytes": list(raw)}

    return [
        {
            **show(one.token_id, one.logprob),
            "top_logprobs": [show(token_id, logprob) for token_id, logprob in one.top],
        }
        for one in tokens
    ]
