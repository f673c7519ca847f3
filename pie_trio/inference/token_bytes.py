"""The bytes that one token stands for, according to the ``decoder`` of a tokenizer.json."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

from pie_trio.errors import ModelDirectoryError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["token_to_bytes"]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")

# These look at the beginning or the end of a whole text, or at neighbours: not at one token.
_TEXT_DECODERS = frozenset({"Fuse", "Strip"})


def token_to_bytes(token: str, decoder: Mapping[str, Any] | None) -> bytes:
    """Return the bytes of a token in the middle of a text.

    Args:
        token: As the vocabulary spells it.
        decoder: The JSON of the tokenizer's decoder; None if it has none.

    Raises:
        ModelDirectoryError: The decoder is of a kind that is not supported.
    """
    for step in _steps(decoder):
        kind = step.get("type")
        if kind == "ByteLevel":
            return _byte_level(token)
        if kind == "ByteFallback":
            match = _BYTE_TOKEN.fullmatch(token)
            if match:
                return bytes([int(match[1], 16)])
        elif kind == "Metaspace":
            token = token.replace(str(step["replacement"]), " ")
        elif kind == "Replace" and "String" in step["pattern"]:
            token = token.replace(str(step["pattern"]["String"]), str(step["content"]))
        elif kind not in _TEXT_DECODERS:
            raise ModelDirectoryError(
                f"tokenizer.json: the decoder {kind!r} is not supported (ByteLevel, "
                "Metaspace, ByteFallback, Fuse, Strip and Replace of a string are): "
                "serve another model"
            )
    return token.encode()


def _steps(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    if decoder.get("type") == "Sequence":
        return [step for inner in decoder["decoders"] for step in _steps(inner)]
    return [decoder]


def _byte_level(token: str) -> bytes:
    """Undo GPT-2's spelling; a token with any other character is taken as it is."""
    byte_by_character = _byte_by_character()
    try:
        return bytes(byte_by_character[character] for character in token)
    except KeyError:
        return token.encode()


@cache
def _byte_by_character() -> Mapping[str, int]:
    """Return GPT-2's table: printable bytes are themselves, the others follow U+0100.

    See ``bytes_to_unicode`` in https://github.com/openai/gpt-2/blob/master/src/encoder.py.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}
