"""A model directory in the Hugging Face layout: what is in it, checked before use.

Weights are read by :mod:`pie_trio.inference.weights`, the tokenizer by
:mod:`pie_trio.inference.tokenizer`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_trio.errors import ModelDirectoryError
from pie_trio.inference.chat_files import read_chat_templates
from pie_trio.inference.json_files import (
    json_list,
    read_json_object,
    read_optional_json_object,
)
from pie_trio.inference.models.reading import read_decoder_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pie_trio.engine_api import ChatTemplates
    from pie_trio.inference.models.config import DecoderConfig

__all__ = ["ModelDirectory", "read_model_directory"]


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """A model directory whose small files have been read.

    Attributes:
        path: The directory.
        config: From ``config.json``.
        eos_token_ids: Of ``generation_config.json``, else of ``config.json``.
        chat: Its chat templates.
    """

    path: Path
    config: DecoderConfig
    eos_token_ids: tuple[int, ...]
    chat: ChatTemplates

    @property
    def prompt_template(self) -> str:
        """The default chat template, or ""."""
        return self.chat.by_name.get("default", "")


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
        chat=read_chat_templates(path),
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
