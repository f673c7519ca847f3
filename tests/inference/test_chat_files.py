"""Where publishers put chat templates, and what is read of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pie_trio.errors import ModelDirectoryError
from pie_trio.inference.chat_files import read_chat_templates

if TYPE_CHECKING:
    from pathlib import Path


def write_config(folder: Path, **fields: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))


def test_a_model_without_templates_has_none(tmp_path: Path) -> None:
    assert read_chat_templates(tmp_path).by_name == {}
    write_config(tmp_path, eos_token="</s>")
    found = read_chat_templates(tmp_path)
    assert (found.by_name, found.special_tokens) == ({}, {"eos_token": "</s>"})


def test_named_templates_are_read_from_the_list_and_from_files(tmp_path: Path) -> None:
    listed = [
        {"name": "default", "template": "a"},
        {"name": "tool_use", "template": "b"},
    ]
    write_config(tmp_path, chat_template=listed)
    assert read_chat_templates(tmp_path).by_name == {"default": "a", "tool_use": "b"}
    (tmp_path / "chat_template.jinja").write_text("c")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates/rag.jinja").write_text("d")
    found = read_chat_templates(tmp_path).by_name
    assert found == {"default": "c", "tool_use": "b", "rag": "d"}


@pytest.mark.parametrize(
    "value",
    [3, [], ["a"], [{"name": "tool_use", "template": "b"}], [{"name": "default"}]],
)
def test_what_is_no_template_is_refused(tmp_path: Path, value: Any) -> None:
    write_config(tmp_path, chat_template=value)
    with pytest.raises(ModelDirectoryError, match="should be a string, or a list"):
        read_chat_templates(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("c")
    assert read_chat_templates(tmp_path).by_name["default"] == "c"


def test_special_tokens_are_texts_wherever_they_stand(tmp_path: Path) -> None:
    older = {"bos_token": {"content": "<old>"}, "unk_token": "<unk>", "pad_token": None}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(older))
    write_config(
        tmp_path, bos_token={"content": "<s>", "lstrip": False}, eos_token=None, x="y"
    )
    found = read_chat_templates(tmp_path).special_tokens
    assert found == {"bos_token": "<s>", "unk_token": "<unk>"}
