"""Text from tokens as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from hypothesis import example, given
from hypothesis import strategies as st

from inferlet_py._text import StopStrings, TextDecoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inferlet_py._models import Model


class ByteModel:
    """A model with a token for each byte."""

    def detokenize(self, token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode(errors="replace")


class SpaceModel:
    """Tokens that are words; the first of a text loses its leading space."""

    def detokenize(self, token_ids: Sequence[int]) -> str:
        return "".join(f" w{i}" for i in token_ids)[1:]


def decode(model: object, token_ids: Sequence[int], before: Sequence[int] = ()) -> str:
    decoder = TextDecoder(cast("Model", model), before)
    return "".join([*map(decoder.add, token_ids), decoder.finish()])


@given(st.text())
def test_pieces_add_up_to_the_text_whatever_the_characters(text: str) -> None:
    text = text.encode(errors="replace").decode()
    assert decode(ByteModel(), text.encode()) == text


@given(st.text())
def test_no_piece_ends_within_a_character(text: str) -> None:
    text = text.encode(errors="replace").decode().replace("\ufffd", "")
    decoder = TextDecoder(cast("Model", ByteModel()))
    assert all("\ufffd" not in decoder.add(byte) for byte in text.encode())


@given(st.binary(max_size=60))
@example(b"\x80" * 7 + b"\xc2\x80")
@example(b"\x80" * 7 + b"\xe2\x82\xac\xf0\x9f\x98\x80")
def test_broken_characters_are_shown_and_end_nothing(data: bytes) -> None:
    text = decode(ByteModel(), data)
    assert text.replace("\ufffd", "") == data.decode(errors="ignore").replace(
        "\ufffd", ""
    )


def test_a_leading_space_depends_on_what_came_before() -> None:
    assert decode(SpaceModel(), [1, 2]) == "w1 w2"
    assert decode(SpaceModel(), [1, 2], before=[7, 8]) == " w1 w2"


@given(
    st.lists(st.text(alphabet="ab", max_size=3), max_size=12),
    st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3),
)
def test_a_stop_string_is_found_across_pieces_and_never_shown(
    pieces: list[str], strings: list[str]
) -> None:
    whole = "".join(pieces)
    found = [at for string in strings if (at := whole.find(string)) >= 0]
    expected = whole[: min(found)] if found else whole
    stops = StopStrings(strings)
    shown = ""
    for piece in pieces:
        text, is_stopped = stops.add(piece)
        shown += text
        if is_stopped:
            break
    else:
        shown += stops.finish()
    # Of two strings that overlap, the one that ends first ends the text.
    assert expected.startswith(shown) or shown == expected or shown.startswith(expected)
    assert not any(string in shown for string in strings)
