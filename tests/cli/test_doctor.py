"""``pie doctor`` says what is there and what is missing."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Pie


def test_a_working_installation_is_reported_as_such(
    pie: Pie, random_model: Path
) -> None:
    done = pie("doctor", "--model", random_model)
    assert done.code == 0, done.out
    for word in (
        "Python",
        "torch",
        "native kernels",
        "wasmtime",
        "FlashInfer",
        "GPU",
        "language component",
    ):
        assert word in done.out
    assert "LlamaForCausalLM" in done.out


def test_what_is_wrong_is_named_and_decides_the_exit_code(
    pie: Pie, torch_is_there: None, tmp_path: Path
) -> None:
    done = pie("doctor", "--model", tmp_path / "none")
    assert done.code == 1
    assert "!!" in done.out
    assert "there is nothing" in done.out


def test_an_empty_cache_is_no_error(pie: Pie, tmp_path: Path) -> None:
    done = pie("doctor", "--cache-dir", tmp_path / "cache")
    assert "the first run builds it" in done.out


def test_a_cache_that_others_may_write_is_an_error(pie: Pie, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    done = pie("doctor", "--cache-dir", tmp_path)
    assert done.code == 1
    assert "chmod 700" in " ".join(done.out.split())


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_damaged_file_of_a_model_is_an_error(
    pie: Pie, random_model: Path, tmp_path: Path, name: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(random_model, model)
    (model / name).write_bytes((model / name).read_bytes()[:-10])
    done = pie("doctor", "--model", model)
    assert done.code == 1
    assert name in "".join(done.out.split())
