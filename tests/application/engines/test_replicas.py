"""Where the engines of one model are, and what they share."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("torch", reason="it writes a model")

from pie_trio.application.engines import loading
from pie_trio.application.engines.memory import (
    AvailableMemory,
    measure_model,
    size_models,
)
from pie_trio.application.engines.process import num_cores
from pie_trio.application.run.command import load_engines
from pie_trio.config import ModelConfig
from pie_trio.errors import ConfigError
from tests.model_factory import write_llama_directory

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from pie_trio.config import EngineProcessConfig

GIB = 1 << 30


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    """A model on two replicas."""
    directory = write_llama_directory(tmp_path / "m")
    return ModelConfig(directory, "m", num_pages=16, num_embeds=8, replicas=2)


class NoProcess:
    """Stands for an engine in a process: it keeps what that would be started with."""

    started: list[tuple[str, Mapping[str, str]]]

    def __init__(
        self,
        name: str,
        opener: object,
        environment: Mapping[str, str],
        *,
        adapters: object,
        config: EngineProcessConfig | None,
    ) -> None:
        self.started.append((name, environment))

    def close(self) -> None:
        """End nothing."""


@pytest.fixture
def started(
    monkeypatch: pytest.MonkeyPatch,
) -> list[tuple[str, Mapping[str, str]]]:
    """The names and environments of the processes that would have been started."""
    NoProcess.started = []
    monkeypatch.setattr(loading, "RemoteEngine", NoProcess)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return NoProcess.started


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four GPUs, whose names are theirs in a machine of eight."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nprintf '4096\\n4096\\n4096\\n4096\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")


@pytest.mark.parametrize(
    ("replicas", "size", "expected"),
    [(2, 1, ["4", "5"]), (4, 1, ["4", "5", "6", "7"]), (2, 2, ["4,5", "6,7"])],
)
@pytest.mark.usefixtures("gpus")
def test_each_replica_has_gpus_of_its_own(
    config: ModelConfig,
    started: list[tuple[str, Mapping[str, str]]],
    replicas: int,
    size: int,
    expected: list[str],
) -> None:
    wanted = replace(config, device="cuda", replicas=replicas, tensor_parallel=size)
    with load_engines([wanted], "process"):
        names, environments = zip(*started, strict=True)
    assert list(names) == [f"m (replica {number})" for number in range(replicas)]
    found = [environment["CUDA_VISIBLE_DEVICES"] for environment in environments]
    assert found == expected


def test_on_the_cpu_replicas_share_the_cores(
    config: ModelConfig,
    started: list[tuple[str, Mapping[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading, "SMALL_MODEL_BYTES", 0)
    monkeypatch.setattr(loading, "num_cores", lambda: 8)
    for replicas, size in ((1, 1), (2, 1), (2, 2), (3, 1), (16, 1)):
        started.clear()
        wanted = replace(config, replicas=replicas, tensor_parallel=size)
        with load_engines([wanted], "process"):
            threads = {env["OMP_NUM_THREADS"] for _, env in started}
        most = 8 // (replicas * size) if replicas * size > 1 else num_cores()
        assert threads == {str(max(1, most))}


def test_replicas_share_the_memory(config: ModelConfig) -> None:
    alone, both = measure_model(replace(config, replicas=1)), measure_model(config)
    assert both.weight_bytes == 2 * alone.weight_bytes
    half = 10 * alone.page_bytes
    available = AvailableMemory(GIB, "a test")
    for kv_bytes, expected in ((2 * half, 10), (2 * half - 1, 9)):
        wanted = replace(config, num_pages=None, kv_bytes=kv_bytes)
        (found,) = size_models([wanted], available=available)
        assert found.num_pages == expected
    wanted = replace(config, num_pages=7)
    (found,) = size_models([wanted], available=available)
    assert found.num_pages == 7, "of each"
    open_ended = replace(config, num_pages=None, page_size=1 << 14)
    (found,) = size_models([open_ended], available=available)
    (single,) = size_models([replace(open_ended, replicas=1)], available=available)
    assert found.num_pages is not None
    assert single.num_pages is not None
    assert 2 * found.num_pages <= single.num_pages <= 2 * found.num_pages + 2


def test_what_does_not_fit_twice_is_refused_with_both_counted(
    config: ModelConfig,
) -> None:
    size = measure_model(config)
    available = AvailableMemory(size.weight_bytes + 16 * size.page_bytes - 1, "a test")
    with pytest.raises(ConfigError, match="of weights on 2 replicas in float32"):
        size_models([config], available=available)
    size_models([replace(config, replicas=1)], available=available)


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({}, "thread", "--replicas 2 needs processes"),
        ({"device": "auto"}, "process", "say --device cuda, or --device cpu"),
        (
            {"replicas": 0, "num_pages": None},
            "process",
            "--replicas takes 1 or more, got 0",
        ),
        ({"device": "cuda", "replicas": 5}, "process", "5 GPUs are asked for"),
        (
            {"device": "cuda", "replicas": 3, "tensor_parallel": 2},
            "process",
            "6 GPUs are asked for, but CUDA_VISIBLE_DEVICES=4,5,6,7 leaves 4",
        ),
    ],
)
@pytest.mark.usefixtures("gpus")
def test_what_replicas_cannot_do_is_refused_before_a_process_starts(
    config: ModelConfig,
    started: list[tuple[str, Mapping[str, str]]],
    change: dict[str, Any],
    kind: Any,
    said: str,
) -> None:
    with pytest.raises(ConfigError, match=said):
        with load_engines([replace(config, **change)], kind):
            raise AssertionError("it is refused")
    assert started == []


def test_models_for_different_numbers_of_gpus_are_refused(
    config: ModelConfig, gpus: None
) -> None:
    two = replace(config, device="cuda")
    size_models([two, replace(two, name="n", replicas=1, tensor_parallel=2)])
    with pytest.raises(ConfigError, match="times --replicas is 1 and 2"):
        size_models([two, replace(two, name="n", replicas=1)])
