"""Text to token ids and back, with the ``tokenizers`` library; and the bytes of each token."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from tokenizers import Tokenizer as LibraryTokenizer

from pie_trio.errors import BadArgumentError, ModelDirectoryError
from pie_trio.inference.json_files import read_json_object
from pie_trio.inference.token_bytes import token_to_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["HuggingFaceTokenizer", "load_tokenizer"]

_OLDER_FILES = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt")
"""What a model may have instead, from which ``transformers`` makes a ``tokenizer.json``."""


class HuggingFaceTokenizer:
    """A :class:`~pie_trio.engine_api.Tokenizer` from a ``tokenizer.json``."""

    def __init__(
        self,
        library: LibraryTokenizer,
        *,
        vocab_size: int,
        decoder: dict[str, Any] | None,
    ) -> None:
        """Wrap a tokenizer of the library.

        Args:
            library: Ours from now on.
            vocab_size: Of the model, which may have more ids than the tokenizer has tokens.
            decoder: The ``decoder`` of its ``tokenizer.json``.
        """
        # A length that the file asks for would silently cut or pad a prompt.
        library.no_truncation()
        library.no_padding()
        self._library = library
        self._vocab_size = vocab_size
        self._decoder = decoder

    @cached_property
    def bos_token_id(self) -> int | None:
        """The id that ``encode(add_special_tokens=True)`` puts before a text, if any."""
        encoding = self._library.encode("a", add_special_tokens=True)
        is_first_special = encoding.sequence_ids[:1] == [None]
        return encoding.ids[0] if is_first_special else None

    def encode(self, text: str, *, add_special_tokens: bool) -> NDArray[np.int32]:
        """Return ``[num_tokens]`` int32.

        Raises:
            BadArgumentError: The text holds half of a surrogate pair, so it is not Unicode.
        """
        try:
            encoding = self._library.encode(text, add_special_tokens=add_special_tokens)
        except (TypeError, UnicodeEncodeError) as error:
            raise BadArgumentError(
                "expected text that can be encoded as UTF-8, but it holds a lone surrogate: "
                "remove it"
            ) from error
        return np.array(encoding.ids, np.int32)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Return the text; bytes that are no whole UTF-8 character become U+FFFD.

        Ids that the model has but the tokenizer does not (padding of the embedding) give
        nothing.

        Raises:
            BadArgumentError: An id is not in ``[0, vocab_size)``.
        """
        ids = [int(token_id) for token_id in token_ids]
        if ids and not (min(ids) >= 0 and max(ids) < self._vocab_size):
            bad = next(i for i in ids if not 0 <= i < self._vocab_size)
            raise BadArgumentError(
                f"a token id should be in [0, {self._vocab_size}), but one is {bad}"
            )
        return self._library.decode(ids, skip_special_tokens=skip_special_tokens)

    def vocabulary(self) -> tuple[bytes, ...]:
        """Return the bytes of each token id, as decoding yields them; b"" for an unused id."""
        return self._vocabulary

    @cached_property
    def _vocabulary(self) -> tuple[bytes, ...]:
        tokens = self._library.get_vocab(with_added_tokens=True)
        added = set(self._library.get_added_tokens_decoder())
        vocabulary = [b""] * self._vocab_size
        for token, token_id in tokens.items():
            is_added = token_id in added
            vocabulary[token_id] = (
                token.encode() if is_added else token_to_bytes(token, self._decoder)
            )
        return tuple(vocabulary)


def load_tokenizer(path: Path, *, vocab_size: int) -> HuggingFaceTokenizer:
    """Read a ``tokenizer.json``.

    Raises:
        ModelDirectoryError: It is missing or damaged, or it has ids that the model has not.
    """
    if not path.exists():
        raise ModelDirectoryError(_explain_missing(path))
    raw = read_json_object(path)
    try:
        library = LibraryTokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ModelDirectoryError(
            f"{path}: expected a tokenizer of the tokenizers library, but it cannot be "
            f"read ({error}): download it again"
        ) from error
    largest = max(library.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= vocab_size:
        raise ModelDirectoryError(
            f"{path}: the tokenizer has ids up to {largest}, but config.json says that "
            f"vocab_size is {vocab_size}: use the tokenizer.json that belongs to the model"
        )
    decoder = cast("dict[str, Any] | None", raw.get("decoder"))
    token_to_bytes(
        "", decoder
    )  # a decoder that we do not know is an error now, not later
    return HuggingFaceTokenizer(library, vocab_size=vocab_size, decoder=decoder)


def _explain_missing(path: Path) -> str:
    folder = path.parent
    others = [n for n in _OLDER_FILES if (folder / n).exists()]
    if not others:
        return (
            f"{path}: the file is missing: give a complete model directory in the Hugging "
            "Face layout (config.json, tokenizer.json, *.safetensors)"
        )
    return (
        f"{path}: the file is missing; there is {' and '.join(others)}, which Pie does not "
        'read: convert it once, where transformers is installed, with `python -c "from '
        "transformers import AutoTokenizer; AutoTokenizer.from_pretrained('DIR')"
        ".save_pretrained('DIR')\"`"
    )
