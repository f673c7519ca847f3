"""``tokenize.wit`` as the SDK sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from inferlet_py._binding import HostInterface

if TYPE_CHECKING:
    from inferlet_py._binding import Adapters

__all__ = ["TOKENIZE", "ChatValues", "TokenizeHost"]


@dataclass(frozen=True)
class ChatValues:
    """A chat that is to become a prompt, in JSON; see ``tokenize.wit``."""

    messages: str
    tools: str
    variables: str
    template: str
    add_generation_prompt: bool


class TokenizeHost(Protocol):
    """Text to tokens and back; see ``tokenize.wit``."""

    def tokenize(self, model: str, text: str, special: bool) -> list[int]: ...
    def detokenize(self, model: str, tokens: list[int]) -> str: ...
    def render_chat(self, model: str, chat: ChatValues) -> str: ...
    def get_vocabs(self, model: str) -> list[bytes]: ...


def _adapt(tokenize: Any) -> Adapters:
    def render_chat(model: str, chat: ChatValues) -> str:
        made = tokenize.ChatRequest(
            chat.messages,
            chat.tools,
            chat.variables,
            chat.template,
            chat.add_generation_prompt,
        )
        text: str = tokenize.render_chat(model, made)
        return text

    return {"render_chat": render_chat}


TOKENIZE = HostInterface("tokenize", TokenizeHost, _adapt)
