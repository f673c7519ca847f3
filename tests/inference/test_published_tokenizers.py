"""Tokenizers as they are published: their test vectors, and their text as it comes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pie_trio.control.detokenize import Detokenizer, TokenTexts
from pie_trio.errors import ModelDirectoryError
from pie_trio.inference.tokenizer import HuggingFaceTokenizer, load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

VOCAB_SIZE = 200_000
"""Not less than any of these tokenizers has; ids beyond their own are empty."""

SEPARATOR = "\n__ggml_vocab_test__\n"
PIE_TINY = Path(__file__).parents[2] / "pie_trio/models/pie_tiny/tokenizer.json"

REPLACEMENT = "\ufffd"

UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def read_vectors(folder: Path, name: str) -> list[tuple[str, list[int]]]:
    """Return texts and their ids: llama.cpp's, a text a block and a line of ids for each."""
    with (folder / f"{name}.inp").open(encoding="utf-8", newline="") as file:
        *texts, rest = file.read().split(SEPARATOR)
    assert not rest, "each text is followed by the separator"
    lines = (folder / f"{name}.out").read_text().splitlines()
    ids = [[int(word) for word in line.split()] for line in lines]
    return list(zip(texts, ids, strict=True))


@pytest.mark.parametrize(
    ("vectors", "tokenizer"), [("gpt-2", "gpt2"), ("qwen2", "qwen3")]
)
def test_published_test_vectors_hold(
    shared_directory: Path, vectors: str, tokenizer: str
) -> None:
    folder = shared_directory / "tokenizers"
    path = folder / tokenizer / "tokenizer.json"
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    loaded = load_tokenizer(path, vocab_size=VOCAB_SIZE)
    cases = read_vectors(folder / "vectors", vectors)
    assert len(cases) > 40
    for text, ids in cases:
        assert loaded.encode(text, add_special_tokens=False).tolist() == ids, repr(text)


def load(name: str, request: pytest.FixtureRequest) -> HuggingFaceTokenizer:
    if name == "pie-tiny":
        return load_tokenizer(PIE_TINY, vocab_size=2048)
    shared: Path = request.getfixturevalue("shared_directory")
    path = shared / name / "tokenizer.json"
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    return load_tokenizer(path, vocab_size=VOCAB_SIZE)


@pytest.fixture(
    scope="module", params=["pie-tiny", "tokenizers/gpt2", "tokenizers/qwen3"]
)
def byte_level(request: pytest.FixtureRequest) -> HuggingFaceTokenizer:
    return load(request.param, request)


@pytest.fixture(scope="module")
def sentencepiece(request: pytest.FixtureRequest) -> HuggingFaceTokenizer:
    """As Llama 2's: a space before a text, and bytes for what has no token."""
    return load("models/stories260K", request)


def stream(tokenizer: HuggingFaceTokenizer, token_ids: Sequence[int]) -> list[str]:
    """Return the pieces of a text as its tokens come."""
    detokenizer = Detokenizer(TokenTexts(tokenizer), is_first=True)
    return [*map(detokenizer.add, token_ids), detokenizer.finish()]


@given(st.data())
def test_any_tokens_stream_to_the_text_of_all_of_them(
    byte_level: HuggingFaceTokenizer, data: st.DataObject
) -> None:
    size = len([token for token in byte_level.vocabulary() if token])
    ids = data.draw(st.lists(st.integers(0, size - 1), max_size=20))
    whole = byte_level.decode(ids, skip_special_tokens=True)
    assert "".join(stream(byte_level, ids)) == whole


@given(UNICODE)
@example("\N{LLAMA}\u200d\N{FIRE} 1 \u00bd \u17a2\u17b6")
def test_no_piece_splits_a_character(
    byte_level: HuggingFaceTokenizer, text: str
) -> None:
    ids = byte_level.encode(text, add_special_tokens=False).tolist()
    whole = byte_level.decode(ids, skip_special_tokens=True)
    pieces = stream(byte_level, ids)
    assert "".join(pieces) == whole
    if REPLACEMENT not in text:
        assert all(REPLACEMENT not in piece for piece in pieces)


@given(UNICODE)
@example("  two spaces, \n a line and \N{LLAMA}")
def test_a_sentencepiece_tokenizer_streams_the_text_it_was_given(
    sentencepiece: HuggingFaceTokenizer, text: str
) -> None:
    ids = sentencepiece.encode(text, add_special_tokens=True).tolist()
    whole = sentencepiece.decode(ids, skip_special_tokens=True)
    pieces = stream(sentencepiece, ids)
    assert "".join(pieces) == whole
    if REPLACEMENT not in text:
        assert all(REPLACEMENT not in piece for piece in pieces)


@given(st.data())
def test_whole_characters_survive_broken_ones_beside_them(
    sentencepiece: HuggingFaceTokenizer, data: st.DataObject
) -> None:
    # The library gives a whole run of byte tokens up where one is broken; what was streamed
    # already cannot be taken back, so the whole characters of the run stay.
    byte_of = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocabulary = sentencepiece.vocabulary()
    ids = {
        vocabulary[i][0]: i for i in range(3, 259) if len(vocabulary[i]) == 1
    }  # the first tokens are <unk>, <s> and </s>
    assert len(ids) == len(byte_of)
    raw = data.draw(st.binary(max_size=20))
    text = "".join(stream(sentencepiece, [ids[byte] for byte in raw]))
    expected = raw.decode(errors="replace")
    assert text in (expected, expected.removeprefix(" "))


def test_an_unknown_decoder_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    raw: dict[str, Any] = json.loads(PIE_TINY.read_text())
    raw["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(ModelDirectoryError, match=r"'WordPiece' is not supported"):
        load_tokenizer(path, vocab_size=2048)


def test_a_directory_without_a_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match=r"tokenizer\.json") as caught:
        load_tokenizer(tmp_path / "tokenizer.json", vocab_size=1)
    assert "AutoTokenizer" not in str(caught.value)
    (tmp_path / "tokenizer.model").write_bytes(b"\0")
    with pytest.raises(ModelDirectoryError, match="AutoTokenizer") as caught:
        load_tokenizer(tmp_path / "tokenizer.json", vocab_size=1)
    assert "tokenizer.model" in str(caught.value)
