from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pie_trio.engine_api import Batch
from pie_trio.errors import ConfigError, EngineError, ModelDirectoryError
from pie_trio.inference.engine import TorchEngine, open_engine
from tests.inference.contexts import Context, run
from tests.model_factory import write_llama_directory

if TYPE_CHECKING:
    from pathlib import Path

    from pie_trio.inference.engine import DtypeName, LoadedModel


@pytest.fixture
def broken_model(tmp_path: Path) -> TorchEngine:
    """A model whose last norm is NaN."""
    directory = write_llama_directory(tmp_path)
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, directory / "model.safetensors")
    return open_engine(directory, name="m", num_pages=4, num_threads=1).engine


def test_a_step_may_run_in_any_thread(tiny_model: LoadedModel) -> None:
    request = Context([0, 1]).feed(b"hello")
    expected = run(tiny_model.engine, request)
    found: list[list[int]] = []
    for _ in range(2):
        thread = threading.Thread(
            target=lambda: found.append(run(tiny_model.engine, request))
        )
        thread.start()
        thread.join()
    assert found == [expected, expected]


def test_a_step_records_no_gradients(tiny_model: LoadedModel) -> None:
    assert torch.is_grad_enabled()
    logits = tiny_model.engine.forward_logits(Batch((Context([0]).feed(b"a"),)))
    assert isinstance(logits, np.ndarray)
    assert not torch.is_inference_mode_enabled()  # only within the step


def test_the_number_of_threads_is_set_in_the_thread_that_runs(tiny_llama: Path) -> None:
    before = torch.get_num_threads()
    engine = open_engine(tiny_llama, name="m", num_pages=2, num_threads=1).engine
    found: list[int] = []

    def step() -> None:
        run(engine, Context([0]).feed(b"a"))
        found.append(torch.get_num_threads())

    try:
        torch.set_num_threads(2)
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(before)
    assert found == [1]


def test_logits_that_are_no_numbers_are_an_error(broken_model: TorchEngine) -> None:
    with pytest.raises(
        EngineError, match="request 1 of the batch: expected finite logits"
    ):
        run(broken_model, Context([0]).feed(b"a", rows=None), Context([1]).feed(b"ab"))


def test_a_pure_prefill_of_a_broken_model_asks_for_no_logits(
    broken_model: TorchEngine,
) -> None:
    (result,) = broken_model.execute(Batch((Context([0]).feed(b"a", rows=None),)))
    assert not result.token_ids.size


def test_a_failure_of_torch_is_an_engine_error(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", fail)
    with pytest.raises(EngineError, match="torch failed in a batch: out of memory"):
        run(tiny_model.engine, Context([0]).feed(b"a"))


def test_a_cache_that_cannot_be_allocated_stops_the_start(tiny_llama: Path) -> None:
    with pytest.raises(ConfigError, match="fewer --kv-pages"):
        open_engine(tiny_llama, name="m", num_pages=2**45)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_auto_takes_the_dtype_of_the_directory(
    tmp_path: Path, stored: torch.dtype
) -> None:
    directory = write_llama_directory(tmp_path, dtype=stored)
    automatic = open_engine(
        directory, name="m", num_pages=2, dtype="auto", num_threads=1
    )
    name: DtypeName = "float32" if stored == torch.float32 else "bfloat16"
    explicit = open_engine(directory, name="m", num_pages=2, dtype=name, num_threads=1)
    batch = Batch((Context([0]).feed(b"hello"),))
    found = automatic.engine.forward_logits(batch)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, explicit.engine.forward_logits(batch))


def test_bfloat16_is_near_float32(tmp_path: Path) -> None:
    directory = write_llama_directory(tmp_path, dtype=torch.bfloat16)
    batch = Batch((Context([0, 1]).feed(b"hello world", rows=range(11)),))
    wide, narrow = (
        open_engine(
            directory, name="m", num_pages=2, dtype=dtype, num_threads=1
        ).engine.forward_logits(batch)
        for dtype in ("float32", "bfloat16")
    )
    assert 0 < abs(wide - narrow).max() < 0.05 * abs(wide).max()


def test_auto_refuses_a_dtype_that_is_not_supported(tmp_path: Path) -> None:
    directory = write_llama_directory(tmp_path, dtype=torch.float16)
    with pytest.raises(
        ModelDirectoryError, match="it is 'float16': choose one of the two"
    ):
        open_engine(directory, name="m", num_pages=2, dtype="auto")


def test_the_new_name_of_the_dtype_is_read(tmp_path: Path) -> None:
    directory = write_llama_directory(
        tmp_path, config={"torch_dtype": None, "dtype": "bfloat16"}
    )
    open_engine(directory, name="m", num_pages=2, dtype="auto", num_threads=1)


def test_closing_gives_the_memory_back(tiny_llama: Path) -> None:
    engine = open_engine(tiny_llama, name="m", num_pages=2, num_threads=1).engine
    engine.close()
    assert not [v for v in vars(engine).values() if isinstance(v, tuple | torch.Tensor)]
    assert engine.info.name == "m"
