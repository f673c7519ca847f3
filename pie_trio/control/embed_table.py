"""The embeds of one inferlet on one model: what each of its numbers stands for."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Embed"]


@dataclass(slots=True)
class Embed:
    """A place for one token.

    Attributes:
        token: The token that was put there; -1 if none was.
        slot: The place of a hidden state on the device; -1 if there is none.
        position: Of the token, or of the one that the hidden state belongs to.
    """

    token: int = -1
    slot: int = -1
    position: int = -1

    @property
    def is_empty(self) -> bool:
        """Nothing was put there."""
        return self.token < 0 and self.slot < 0
