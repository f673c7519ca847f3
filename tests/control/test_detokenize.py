"""Text from tokens as they come is the text of all of them at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from inferlet_py._text import StopStrings
from pie_trio.control.detokenize import Detokenizer, StopTexts, TokenTexts
from pie_trio.inference.fake import FakeTokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

BOS, EOS = 256, 257
TOKENS = st.lists(st.integers(0, 255) | st.sampled_from([BOS, EOS]), max_size=40)


class WordTokenizer:
    """Tokens that are words; the first of a text loses its leading space."""

    words = ("", " ", " a", " bc", "d", "<special>")

    def encode(self, text: str, *, add_special_tokens: bool) -> NDArray[np.int32]:
        raise NotImplementedError

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        shown = [i for i in token_ids if i != 5 or not skip_special_tokens]
        return "".join(self.words[i] for i in shown).removeprefix(" ")

    def vocabulary(self) -> tuple[bytes, ...]:
        return tuple(word.encode() for word in self.words)


def decode(detokenizer: Detokenizer, tokens: Sequence[int]) -> str:
    return "".join([*map(detokenizer.add, tokens), detokenizer.finish()])


@given(TOKENS)
def test_pieces_add_up_to_the_text_whatever_the_bytes(tokens: list[int]) -> None:
    tokenizer = FakeTokenizer()
    found = decode(Detokenizer(TokenTexts(tokenizer), is_first=True), tokens)
    assert found == tokenizer.decode(tokens, skip_special_tokens=True)


@given(st.text())
def test_no_piece_ends_within_a_character(text: str) -> None:
    text = text.encode(errors="replace").decode().replace("\ufffd", "")
    detokenizer = Detokenizer(TokenTexts(FakeTokenizer()), is_first=True)
    pieces = [detokenizer.add(byte) for byte in text.encode()]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == text


@given(st.lists(st.integers(0, 5)), st.lists(st.integers(0, 5)))
def test_a_leading_space_depends_on_what_came_before(
    before: list[int], tokens: list[int]
) -> None:
    tokenizer, texts = WordTokenizer(), TokenTexts(WordTokenizer())
    found = decode(Detokenizer(texts, is_first=not texts.is_any_shown(before)), tokens)
    whole = tokenizer.decode([*before, *tokens], skip_special_tokens=True)
    known = tokenizer.decode(before, skip_special_tokens=True)
    assert found == whole[len(known) :]


@given(TOKENS, TOKENS)
def test_a_fork_goes_on_by_itself(first: list[int], rest: list[int]) -> None:
    detokenizer = Detokenizer(TokenTexts(FakeTokenizer()), is_first=True)
    for token in first:
        detokenizer.add(token)
    fork = detokenizer.fork()
    assert decode(fork, rest) == decode(detokenizer, rest)


@given(
    st.lists(st.text(alphabet="ab", max_size=3), max_size=12),
    st.lists(st.text(alphabet="ab", max_size=5), max_size=3),
)
def test_stop_texts_are_found_as_in_an_inferlet(
    pieces: list[str], strings: list[str]
) -> None:
    here, there = StopTexts(strings), StopStrings(strings)
    for piece in pieces:
        found = here.add(piece)
        assert found == there.add(piece)
        if found[1]:
            return
        here = here.fork()
    assert here.finish() == there.finish()
