"""Text from tokens as they come: no half characters, and stop texts across tokens."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pie_trio.engine_api import Tokenizer

__all__ = ["Detokenizer", "StopTexts", "TokenTexts"]

_new_decoder = codecs.getincrementaldecoder("utf-8")


class TokenTexts:
    """The bytes that each token of a model adds to a text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._vocabulary: Sequence[bytes] | None = None
        self._shown: dict[int, bytes] = {}

    @property
    def vocabulary(self) -> Sequence[bytes]:
        """The bytes of every token; a large one takes a tenth of a second at first."""
        if self._vocabulary is None:
            self._vocabulary = self._tokenizer.vocabulary()
        return self._vocabulary

    def inside(self, token_id: int) -> bytes:
        """Return the bytes of a token inside of a text; none of a special one."""
        shown = self._shown.get(token_id)
        if shown is None:
            shown = self._shown[token_id] = self._look_up(token_id)
        return shown

    def first(self, token_id: int) -> bytes:
        """Return the bytes of a token that begins a text, which may lose a space by that."""
        shown = self.inside(token_id)
        if shown.startswith(b" "):
            text = self._tokenizer.decode([token_id], skip_special_tokens=True)
            if not text.startswith(" "):
                return shown[1:]
        return shown

    def is_any_shown(self, token_ids: Iterable[int]) -> bool:
        """Say whether any of these tokens adds to a text; ids out of range do not."""
        size = len(self.vocabulary)
        return any(self.inside(i) for i in token_ids if 0 <= i < size)

    def _look_up(self, token_id: int) -> bytes:
        if token_id >= len(self.vocabulary):
            return b""  # the model has more ids than the tokenizer
        # Twice: a token that is just a space is nothing where it begins a text.
        twice = self._tokenizer.decode([token_id] * 2, skip_special_tokens=True)
        return self.vocabulary[token_id] if twice else b""


class Detokenizer:
    """Turns a growing sequence of token ids into text.

    Args:
        texts: Of the model.
        is_first: No text came before.
    """

    def __init__(self, texts: TokenTexts, *, is_first: bool) -> None:
        self._texts, self._is_first = texts, is_first
        self._decoder = _new_decoder(errors="replace")

    def add(self, token_id: int) -> str:
        """Return the text that became certain by this token, perhaps none."""
        if not self._is_first:
            return self._decoder.decode(self._texts.inside(token_id))
        if not self._texts.inside(token_id):
            return ""
        self._is_first = False
        return self._decoder.decode(self._texts.first(token_id))

    def finish(self) -> str:
        """Return U+FFFD for a character that was cut short."""
        return self._decoder.decode(b"", final=True)

    def fork(self) -> Detokenizer:
        """Return another one that goes on from here."""
        copy = Detokenizer(self._texts, is_first=self._is_first)
        copy._decoder.setstate(self._decoder.getstate())
        return copy


class StopTexts:
    """Finds the first of several strings in a text that arrives in pieces.

    It costs the same for each character however long the strings are: see Knuth, Morris and
    Pratt 1977, doi:10.1137/0206024.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = [string for string in strings if string]
        self._failures = [_failures(string) for string in self._strings]
        self._matched = [0] * len(self._strings)
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """Return the text that cannot be part of a stop text, and whether one was found."""
        if not self._strings:
            return text, False
        num_held = len(self._held)
        starts = [
            start
            for index in range(len(self._strings))
            if (start := self._scan(index, text)) is not None
        ]
        text = self._held + text
        if starts:
            self._held = ""
            return text[: num_held + min(starts)], True
        end = len(text) - max(self._matched)
        self._held = text[end:]
        return text[:end], False

    def finish(self) -> str:
        """Return the text held back."""
        held, self._held = self._held, ""
        return held

    def fork(self) -> StopTexts:
        """Return another one that goes on from here."""
        copy = StopTexts(())
        copy._strings, copy._failures = self._strings, self._failures
        copy._matched, copy._held = list(self._matched), self._held
        return copy

    def _scan(self, index: int, text: str) -> int | None:
        """Go on looking for a string; return where it begins, from the start of ``text``."""
        string, matched = self._strings[index], self._matched[index]
        if matched == 0 and string[0] not in text:
            return None
        failures = self._failures[index]
        for at, character in enumerate(text):
            while matched and string[matched] != character:
                matched = failures[matched - 1]
            if string[matched] == character:
                matched += 1
                if matched == len(string):
                    return at + 1 - matched
        self._matched[index] = matched
        return None


def _failures(string: str) -> list[int]:
    """Return, for each beginning, the length of the longest one that it also ends with."""
    failures = [0] * len(string)
    length = 0
    for index in range(1, len(string)):
        while length and string[index] != string[length]:
            length = failures[length - 1]
        if string[index] == string[length]:
            length += 1
        failures[index] = length
    return failures
