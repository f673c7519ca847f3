"""A model directory in the Hugging Face layout: what is in it, checked before use.

Weights are read by :mod:`pie_trio.inference.weights`, the tokenizer by
:mod:`pie_trio.inference.tokenizer`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pie_trio.errors import ModelDirectoryError
from pie_trio.inference.json_files import (
    json_list,
    read_json_object,
    read_optional_json_object,
    read_text,
)
from pie_trio.inference.models.config import read_decoder_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pie_trio.inference.models.config import DecoderConfig

__all__ = ["ModelDirectory", "read_model_directory"]

_TEMPLATE_FILE = "chat_template.jinja"


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """A model directory whose small files have been read.

    Attributes:
        path: The directory.
        config: From ``config.json``.
        eos_token_ids: Of ``generation_config.json``, else of ``config.json``.
        prompt_template: Of ``chat_template.jinja``, else of ``tokenizer_config.json``; else "".
    """

    path: Path
    config: DecoderConfig
    eos_token_ids: tuple[int, ...]
    prompt_template: str


def read_model_directory(path: Path | str) -> ModelDirectory:
    """Read everything of a model directory but the weights and the tokenizer.

    Raises:
        ModelDirectoryError: The directory or a file is missing or damaged, or the model is
            one that Pie cannot run. The message says what to do.
    """
    path = Path(path)
    if not path.is_dir():
        found = "it is a file" if path.exists() else "there is nothing"
        raise ModelDirectoryError(
            f"{path}: expected a model directory in the Hugging Face layout, but {found}: "
            "give the directory that holds config.json"
        )
    raw = read_json_object(path / "config.json")
    config = read_decoder_config(raw, path / "config.json")
    return ModelDirectory(
        path=path,
        config=config,
        eos_token_ids=_eos_token_ids(path, raw, config.vocab_size),
        prompt_template=_prompt_template(path),
    )


def _eos_token_ids(
    path: Path, config: Mapping[str, Any], vocab_size: int
) -> tuple[int, ...]:
    source = path / "generation_config.json"
    value = read_optional_json_object(source).get("eos_token_id")
    if value is None:
        source, value = path / "config.json", config.get("eos_token_id")
    if value is None:
        return ()
    token_ids = [value] if (several := json_list(value)) is None else several
    for token_id in token_ids:
        is_id = isinstance(token_id, int) and not isinstance(token_id, bool)
        if not is_id or not 0 <= token_id < vocab_size:
            raise ModelDirectoryError(
                f"{source}: eos_token_id should be a token id below {vocab_size} or a list "
                f"of them, but it is {value!r}: correct the file"
            )
    return tuple(dict.fromkeys(token_ids))


def _prompt_template(path: Path) -> str:
    """Return the chat template. The file of its own is newer, so it wins."""
    if (path / _TEMPLATE_FILE).exists():
        return read_text(path / _TEMPLATE_FILE)
    source = path / "tokenizer_config.json"
    value: object = read_optional_json_object(source).get("chat_template")
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    # Several named ones, as [{"name": ..., "template": ...}]: the one called "default" counts.
    for entry in json_list(value) or []:
        if isinstance(entry, dict):
            named = cast("dict[str, Any]", entry)
            if named.get("name") == "default" and isinstance(
                named.get("template"), str
            ):
                return str(named["template"])
    raise ModelDirectoryError(
        f"{source}: chat_template should be a string, or a list with an entry named "
        f"'default', but it is {value!r}: correct the file, or add {_TEMPLATE_FILE}"
    )
