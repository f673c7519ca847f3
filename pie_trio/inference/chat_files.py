"""The chat templates of a model directory, wherever its publisher has put them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from pie_trio.engine_api import ChatTemplates
from pie_trio.errors import ModelDirectoryError
from pie_trio.inference.json_files import (
    json_list,
    read_optional_json_object,
    read_text,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["read_chat_templates"]

_CONFIG = "tokenizer_config.json"
_FILE = "chat_template.jinja"
_FOLDER = "additional_chat_templates"
_SPECIAL_TOKENS = tuple(
    f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
)


def read_chat_templates(path: Path) -> ChatTemplates:
    """Read the chat templates of a model directory, and the texts of its special tokens.

    Templates are in ``tokenizer_config.json``, as a string or as a list of named ones, or in
    files of their own, which are newer and win: ``chat_template.jinja`` is the default one,
    ``additional_chat_templates/NAME.jinja`` others.

    Raises:
        ModelDirectoryError: A file is damaged, or there are named templates without a default.
    """
    config = read_optional_json_object(path / _CONFIG)
    templates = _templates_of(config.get("chat_template"))
    if (path / _FILE).exists():
        templates = {**(templates or {}), "default": read_text(path / _FILE)}
    if templates is None or (templates and "default" not in templates):
        raise ModelDirectoryError(
            f"{path / _CONFIG}: chat_template should be a string, or a list with an entry named "
            f"'default', but it is {config.get('chat_template')!r}: correct the file, or add "
            f"{_FILE}"
        )
    for file in sorted((path / _FOLDER).glob("*.jinja")):
        templates[file.stem] = read_text(file)
    tokens = read_optional_json_object(path / "special_tokens_map.json")
    return ChatTemplates(templates, _special_tokens({**tokens, **config}))


def _templates_of(value: object) -> dict[str, str] | None:
    """Return the templates of ``chat_template`` by name; None if it makes no sense."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    found: dict[str, str] = {}
    for entry in json_list(value) or [None]:
        named = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
        name, template = named.get("name"), named.get("template")
        if not isinstance(name, str) or not isinstance(template, str):
            return None
        found[name] = template
    return found


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts of the special tokens that there are."""
    found: dict[str, str] = {}
    for name in _SPECIAL_TOKENS:
        value = config.get(name)
        if isinstance(value, dict):  # with what the tokenizer does around it
            value = cast("dict[str, Any]", value).get("content")
        if isinstance(value, str):
            found[name] = value
    return found
