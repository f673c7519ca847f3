"""``tokenize.wit`` as the SDK sees it."""

from __future__ import annotations

from typing import Protocol

from inferlet_py._binding import HostInterface

__all__ = ["TOKENIZE", "TokenizeHost"]


class TokenizeHost(Protocol):
    """Text to tokens and back; see ``tokenize.wit``."""

    def tokenize(self, model: str, text: str, special: bool) -> list[int]: ...
    def detokenize(self, model: str, tokens: list[int]) -> str: ...
    def get_vocabs(self, model: str) -> list[bytes]: ...


TOKENIZE = HostInterface("tokenize", TokenizeHost)
