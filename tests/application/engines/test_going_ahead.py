"""Where streams go ahead unless it was said: where steps leave the server a core."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pie_trio.application.engines import loading
from pie_trio.application.engines.loading import leaves_core
from pie_trio.application.serving import LoadedEngine, open_models
from pie_trio.config import ControlConfig, InstanceLimits, ModelConfig
from pie_trio.inference.fake import FakeEngine, FakeTokenizer

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    """A model that is small, on four cores."""
    monkeypatch.setattr(loading, "num_cores", lambda: 4)
    return ModelConfig(tmp_path, "m")


@pytest.mark.parametrize(
    ("details", "leaves"),
    [
        ({}, True),  # one thread is enough for it
        ({"num_threads": 3}, True),
        ({"num_threads": 4}, False),
        ({"num_threads": 2, "replicas": 2}, False),
        ({"num_threads": 1, "tensor_parallel": 3}, True),
        ({"num_threads": 4, "device": "cuda"}, True),
    ],
)
def test_threads_of_all_processes_are_counted(
    model: ModelConfig, details: dict[str, object], leaves: bool
) -> None:
    assert leaves_core(replace(model, **details)) is leaves  # type: ignore[arg-type]


def test_a_large_model_takes_all_cores(model: ModelConfig) -> None:
    with (model.directory / "model.safetensors").open("wb") as file:
        file.truncate(loading.SMALL_MODEL_BYTES)
    assert not leaves_core(model)


@pytest.mark.parametrize("has_driver", [False, True])
def test_a_device_that_is_chosen_later_is_a_gpu_where_there_is_a_driver(
    model: ModelConfig, monkeypatch: pytest.MonkeyPatch, has_driver: bool
) -> None:
    path = "/usr/bin/nvidia-smi" if has_driver else None
    monkeypatch.setattr(shutil, "which", lambda _: path)
    chosen_later = replace(model, device="auto", num_threads=4)
    assert leaves_core(chosen_later) is has_driver


@pytest.mark.parametrize("said", [None, False, True])
@pytest.mark.parametrize("leaves", [False, True])
async def test_what_was_said_holds(said: bool | None, leaves: bool) -> None:
    loaded = LoadedEngine(FakeEngine(), FakeTokenizer(), leaves_core=leaves)
    control = ControlConfig(goes_ahead=said)
    async with open_models([loaded], control, InstanceLimits()) as models:
        expected = leaves if said is None else said
        assert models["fake"].batcher.config.goes_ahead is expected
