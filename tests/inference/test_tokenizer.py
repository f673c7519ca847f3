from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.errors import BadArgumentError
from pie_trio.inference.fake import FakeTokenizer
from pie_trio.inference.token_bytes import token_to_bytes
from pie_trio.inference.tokenizer import HuggingFaceTokenizer, load_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from pie_trio.engine_api import Tokenizer

LLAMA_DECODER = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}


@pytest.fixture
def tokenizer(tiny_llama: Path) -> HuggingFaceTokenizer:
    return load_tokenizer(tiny_llama / "tokenizer.json", vocab_size=258)


@pytest.fixture(params=["fake", "real"])
def byte_tokenizer(
    request: pytest.FixtureRequest, tokenizer: HuggingFaceTokenizer
) -> Tokenizer:
    return FakeTokenizer() if request.param == "fake" else tokenizer


@pytest.mark.parametrize(
    "text", ["", "plain", "\u00e4\u4f60 \U0001f600\n\0", " two  spaces "]
)
def test_a_text_survives_the_way_there_and_back(
    byte_tokenizer: Tokenizer, text: str
) -> None:
    ids = byte_tokenizer.encode(text, add_special_tokens=False)
    assert ids.dtype == np.int32
    assert ids.tolist() == list(text.encode())
    assert byte_tokenizer.decode(ids.tolist(), skip_special_tokens=False) == text


def test_special_tokens_are_added_and_skipped_on_demand(
    byte_tokenizer: Tokenizer,
) -> None:
    ids = byte_tokenizer.encode("a", add_special_tokens=True).tolist()
    assert ids == [256, 97]
    assert byte_tokenizer.decode([*ids, 257], skip_special_tokens=True) == "a"
    assert (
        byte_tokenizer.decode([*ids, 257], skip_special_tokens=False) == "<bos>a<eos>"
    )


def test_half_a_character_becomes_the_replacement_character(
    byte_tokenizer: Tokenizer,
) -> None:
    half = "\u00e4".encode()[0]
    assert byte_tokenizer.decode([97, half, 98], skip_special_tokens=True) == "a\ufffdb"


def test_the_vocabulary_is_what_decoding_yields(byte_tokenizer: Tokenizer) -> None:
    vocabulary = byte_tokenizer.vocabulary()
    assert vocabulary[:256] == tuple(bytes([byte]) for byte in range(256))
    assert vocabulary[256:] == (b"<bos>", b"<eos>")


@pytest.mark.parametrize("bad", [-1, 258, 2**40])
def test_an_id_out_of_range_is_refused(byte_tokenizer: Tokenizer, bad: int) -> None:
    with pytest.raises(BadArgumentError, match=rf"in \[0, 258\), but one is {bad}"):
        byte_tokenizer.decode([1, bad], skip_special_tokens=True)


def test_numpy_ids_are_decoded(byte_tokenizer: Tokenizer) -> None:
    ids: Any = byte_tokenizer.encode("text", add_special_tokens=False)
    assert byte_tokenizer.decode(ids, skip_special_tokens=True) == "text"


def test_half_a_surrogate_pair_is_refused(tokenizer: HuggingFaceTokenizer) -> None:
    with pytest.raises(BadArgumentError, match="lone surrogate"):
        tokenizer.encode("\ud800", add_special_tokens=True)


def test_ids_that_only_the_model_has_are_empty(tiny_llama: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama / "tokenizer.json", vocab_size=300)
    assert tokenizer.vocabulary()[258:] == (b"",) * 42
    assert tokenizer.decode([97, 299, 98], skip_special_tokens=False) == "ab"


def test_a_length_in_the_file_neither_cuts_nor_pads(
    tiny_llama: Path, tmp_path: Path
) -> None:
    raw = json.loads((tiny_llama / "tokenizer.json").read_text())
    raw["truncation"] = {
        "direction": "Right",
        "max_length": 3,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    raw["padding"] = {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json", vocab_size=258)
    assert tokenizer.encode("12345", add_special_tokens=False).tolist() == [*b"12345"]


def test_the_beginning_is_what_encoding_really_adds(
    tiny_llama: Path, tmp_path: Path
) -> None:
    raw = json.loads((tiny_llama / "tokenizer.json").read_text())
    path = tmp_path / "tokenizer.json"
    assert (
        load_tokenizer(tiny_llama / "tokenizer.json", vocab_size=258).bos_token_id
        == 256
    )
    path.write_text(json.dumps({**raw, "post_processor": None}))
    assert load_tokenizer(path, vocab_size=258).bos_token_id is None


def test_many_threads_may_share_a_tokenizer(tokenizer: HuggingFaceTokenizer) -> None:
    def there_and_back(number: int) -> str:
        ids = tokenizer.encode(f"text {number}", add_special_tokens=True).tolist()
        assert len(tokenizer.vocabulary()) == 258
        return tokenizer.decode(ids, skip_special_tokens=True)

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(there_and_back, range(200)))
    assert texts == [f"text {number}" for number in range(200)]


def test_nothing_is_printed(
    tokenizer: HuggingFaceTokenizer, capfd: pytest.CaptureFixture[str]
) -> None:
    ids = tokenizer.encode("text " * 1000, add_special_tokens=True).tolist()
    tokenizer.decode(ids, skip_special_tokens=True)
    tokenizer.vocabulary()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("token", "decoder", "expected"),
    [
        ("\u2581Once", LLAMA_DECODER, b" Once"),
        ("<0x0A>", LLAMA_DECODER, b"\n"),
        ("<0xe4>", LLAMA_DECODER, b"\xe4"),
        ("<0x0A>x", LLAMA_DECODER, b"<0x0A>x"),
        ("\u00e9", LLAMA_DECODER, b"\xc3\xa9"),
        ("\u2581a", {"type": "Metaspace", "replacement": "\u2581"}, b" a"),
        ("\u0120Hello", {"type": "ByteLevel"}, b" Hello"),
        ("\u010a", {"type": "ByteLevel"}, b"\n"),
        ("\u00c3\u00a4", {"type": "ByteLevel"}, b"\xc3\xa4"),
        ("\u4f60 special", {"type": "ByteLevel"}, "\u4f60 special".encode()),
        ("word", None, b"word"),
    ],
)
def test_a_token_is_spelled_as_its_decoder_says(
    token: str, decoder: dict[str, Any] | None, expected: bytes
) -> None:
    assert token_to_bytes(token, decoder) == expected


@pytest.fixture(scope="module", params=["gpt2", "qwen3"])
def published(
    request: pytest.FixtureRequest, shared_directory: Path
) -> HuggingFaceTokenizer:
    path = shared_directory / "tokenizers" / str(request.param) / "tokenizer.json"
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    return load_tokenizer(path, vocab_size=200_000)


@given(text=st.text(max_size=40))
def test_the_bytes_of_published_tokens_join_to_the_decoded_text(
    published: HuggingFaceTokenizer, text: str
) -> None:
    ids = published.encode(text, add_special_tokens=False).tolist()
    joined = b"".join(published.vocabulary()[token_id] for token_id in ids)
    decoded = published.decode(ids, skip_special_tokens=False)
    assert joined.decode(errors="replace") == decoded
