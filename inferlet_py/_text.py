"""Token ids to text as they come: no half characters, and stop strings across tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inferlet_py._models import Model

__all__ = ["StopStrings", "TextDecoder"]

REPLACEMENT = "\ufffd"
MAX_OPEN_TOKENS = 3  # a character of four bytes without its last
MAX_HELD_TOKENS = 8
"""A character has at most 4 bytes; after this many tokens it is broken, not unfinished."""


class TextDecoder:
    """Turns a growing sequence of token ids into text.

    The text of a token can depend on the one before it (a leading space) and a character can
    span several tokens; text is therefore decoded behind a few known tokens, and held back while
    it ends within a character.

    Args:
        model: Whose tokens they are.
        before: Tokens that come before the text.
    """

    def __init__(self, model: Model, before: Sequence[int] = ()) -> None:
        self._model = model
        self._window = list(before[-MAX_HELD_TOKENS:])
        self._num_known = len(self._window)
        self._known_text = model.detokenize(self._window) if self._window else ""

    def add(self, token_id: int) -> str:
        """Return the text that became certain by this token, perhaps none."""
        self._window.append(token_id)
        text = self._model.detokenize(self._window)
        if not text.endswith(REPLACEMENT):
            return self._advance(text, len(self._window))
        if len(self._window) - self._num_known < MAX_HELD_TOKENS:
            return ""
        # Some character is broken; the last tokens may still begin a good one.
        for num_open in range(MAX_OPEN_TOKENS, 0, -1):
            end = len(self._window) - num_open
            certain = self._model.detokenize(self._window[:end])
            if text.startswith(certain):
                return self._advance(certain, end)
        return self._advance(text, len(self._window))

    def finish(self) -> str:
        """Return the text held back, with U+FFFD for a character cut short."""
        return self._advance(self._model.detokenize(self._window), len(self._window))

    def _advance(self, text: str, end: int) -> str:
        """Return what is new in ``text``, of the first ``end`` tokens, which are known now."""
        fresh = text[len(self._known_text) :]
        self._window = self._window[self._num_known :]
        self._num_known = end - self._num_known
        self._known_text = self._model.detokenize(self._window[: self._num_known])
        return fresh


class StopStrings:
    """Finds the first of several strings in a text that arrives in pieces."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = [string for string in strings if string]
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """Return the text that cannot be part of a stop string, and whether one was found."""
        text = self._held + text
        found = [at for string in self._strings if (at := text.find(string)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        held = max((self._overlap(text, string) for string in self._strings), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def finish(self) -> str:
        """Return the text held back."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, string: str) -> int:
        """Return how many characters at the end of ``text`` begin ``string``."""
        longest = min(len(text), len(string) - 1)
        return next((n for n in range(longest, 0, -1) if text.endswith(string[:n])), 0)
