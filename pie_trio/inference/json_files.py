"""Reading JSON files of a model directory, with errors that an operator understands."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from pie_trio.errors import ModelDirectoryError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["json_list", "read_json_object", "read_optional_json_object", "read_text"]


def json_list(value: object) -> list[Any] | None:
    """Return ``value`` if it is a list, else None."""
    return value if isinstance(value, list) else None  # pyright: ignore[reportUnknownVariableType] -- JSON


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ModelDirectoryError: The file is missing, unreadable, or not a JSON object.
    """
    text = read_text(path)
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelDirectoryError(
            f"{path}: expected JSON, but it cannot be parsed ({error}): "
            "download the file again"
        ) from error
    if not isinstance(value, dict):
        raise ModelDirectoryError(
            f"{path}: expected a JSON object, but found a {type(value).__name__}: "
            "download the file again"
        )
    return cast("dict[str, Any]", value)


def read_optional_json_object(path: Path) -> dict[str, Any]:
    """As :func:`read_json_object`, but an absent file reads as an empty object."""
    return read_json_object(path) if path.exists() else {}


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file.

    Raises:
        ModelDirectoryError: The file is missing or unreadable.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ModelDirectoryError(
            f"{path}: the file is missing: give a complete model directory in the "
            "Hugging Face layout (config.json, tokenizer.json, *.safetensors)"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ModelDirectoryError(
            f"{path}: expected a readable UTF-8 file: {error}"
        ) from error
