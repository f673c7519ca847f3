"""What is free on a GPU, as its tool tells."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pie_trio.application.engines.gpu import free_gpu_bytes, visible_gpus
from pie_trio.application.engines.memory import size_models
from pie_trio.config import ModelConfig
from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytest.importorskip("torch", reason="it writes a model")

from tests.model_factory import write_llama_directory  # needs torch


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a script in the place of nvidia-smi."""

    def put(script: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))

    return put


def test_free_memory_is_what_the_tool_says(install: Callable[[str], None]) -> None:
    install("echo 3072")
    assert free_gpu_bytes() == 3 << 30


def test_of_several_gpus_the_one_with_least_sets_the_limit(
    install: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    install('[ "$3" = "--id=5,2" ] && printf "4096\\n3072\\n"')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 2,7")
    assert free_gpu_bytes(2) == 3 << 30
    assert visible_gpus(3) == ["5", "2", "7"]
    with pytest.raises(ConfigError, match=r"4 GPUs are asked for, .* leaves 3: "):
        free_gpu_bytes(4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus(2) == ["0", "1"]


def test_a_gpu_too_few_is_an_error(install: Callable[[str], None]) -> None:
    install("echo 4096")
    with pytest.raises(ConfigError, match="2 GPUs are asked for, and it knows 1"):
        free_gpu_bytes(2)


def test_a_model_that_gpus_share_is_sized_by_all_of_them(
    install: Callable[[str], None], tmp_path: Path
) -> None:
    model = ModelConfig(
        write_llama_directory(tmp_path / "m"),
        *("m", None, 1 << 50),
        num_embeds=16,
        device="cuda",
        tensor_parallel=2,
    )
    install('printf "64\\n32\\n"')
    with pytest.raises(ConfigError, match=r"64 MiB of memory .*the memory of 2 GPUs"):
        size_models([model])
    other = replace(model, tensor_parallel=1)
    with pytest.raises(ConfigError, match="--replicas is 1 and 2"):
        size_models([model, other])


@pytest.mark.parametrize("script", ["exit 9", "echo", "echo '[N/A]'"])
def test_a_tool_that_does_not_tell_is_an_error(
    install: Callable[[str], None], script: str
) -> None:
    install(script)
    with pytest.raises(ConfigError, match="does not tell how much memory is free"):
        free_gpu_bytes()


def test_without_the_tool_there_is_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no nvidia-smi"):
        free_gpu_bytes()


def test_a_model_for_the_gpu_is_sized_by_the_memory_of_the_gpu(
    install: Callable[[str], None], tmp_path: Path
) -> None:
    model = ModelConfig(
        write_llama_directory(tmp_path / "m"), "m", num_embeds=16, device="cuda"
    )
    install("echo 1024")
    (sized,) = size_models([model])
    (doubled,) = size_models([model], default_kv_bytes=None)
    assert sized == doubled
    assert sized.num_pages is not None
    assert sized.num_pages > 1000


def test_a_model_that_is_too_large_for_the_gpu_is_refused_with_the_numbers(
    install: Callable[[str], None], tmp_path: Path
) -> None:
    install("echo 4")
    model = ModelConfig(
        write_llama_directory(tmp_path / "m"),
        "m",
        num_embeds=16,
        num_pages=9999,
        device="cuda",
    )
    with pytest.raises(ConfigError, match=r"4 MiB of memory .*\(the GPU's memory\)"):
        size_models([model])
