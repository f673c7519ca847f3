from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pie_trio.engine_api import Batch, OutputSpec, ProjectRequest, SamplerSpec
from pie_trio.errors import ConfigError, EngineError, ModelDirectoryError
from pie_trio.inference.engine import TorchEngine, open_engine
from tests.inference.contexts import Context, int32, run
from tests.model_factory import LlamaShape, write_llama_directory

if TYPE_CHECKING:
    from pathlib import Path

    from pie_trio.engine_api import ForwardRequest
    from pie_trio.inference.engine import DtypeName, LoadedModel

POISON = 200


@pytest.fixture
def broken_model(tmp_path: Path) -> TorchEngine:
    """A model whose last norm is NaN."""
    directory = write_llama_directory(tmp_path)
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, directory / "model.safetensors")
    return open_engine(directory, name="m", num_pages=4, num_threads=1).engine


@pytest.fixture
def poisoned_model(tmp_path: Path) -> TorchEngine:
    """A model in which the embedding of one token is NaN."""
    directory = write_llama_directory(tmp_path, LlamaShape(is_tied=False))
    tensors = load_file(directory / "model.safetensors")
    tensors["model.embed_tokens.weight"][POISON, 5] = float("nan")
    save_file(tensors, directory / "model.safetensors")
    return open_engine(
        directory, name="m", num_pages=16, page_size=4, num_threads=1
    ).engine


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


def test_logits_that_are_no_numbers_fail_whoever_asked_for_them(
    broken_model: TorchEngine,
) -> None:
    requests = (Context([0]).feed(b"a", rows=None), Context([1]).feed(b"ab"))
    prefill, sampled = broken_model.execute(Batch(requests)).forwards
    assert prefill == ()  # the layers are right, and it asked for no logits
    assert "expected finite numbers" in str(sampled)
    with pytest.raises(EngineError, match="expected finite numbers"):
        broken_model.forward_logits(Batch(requests))


def test_a_state_that_is_no_number_fails_its_request_alone(
    poisoned_model: TorchEngine,
) -> None:
    def requests(token_id: int) -> tuple[ForwardRequest, ...]:
        bad = [65, token_id, 66]
        return (
            Context([0, 1]).feed(b"abcd"),
            Context([2, 3]).feed(bad, rows=[0, 2], store=int32(3, 4), top_k=5),
            Context([4, 5]).feed(bad, rows=None),
            Context([6]).feed(b"x", sampler=SamplerSpec(temperature=1.0, seed=3)),
        )

    engine = poisoned_model
    expected = engine.execute(Batch(requests(67))).forwards
    result = engine.execute(Batch(requests(POISON)))
    assert [isinstance(r, EngineError) for r in result.forwards] == [0, 1, 1, 0]
    for found, good in zip(result.forwards[::3], expected[::3], strict=True):
        assert not isinstance(found, EngineError)
        assert not isinstance(good, EngineError)
        assert found[0].token_ids.tolist() == good[0].token_ids.tolist()
    # The others go on, and so does whoever gets the pages next, behind a mask.
    mask = np.array([[False, False, False, True]])
    request = Context([2], kv_len=3).feed(b"y", positions=[0], mask=mask)
    assert run(engine, request) == run(engine, Context([9]).feed(b"y"))


def test_a_stored_state_that_is_no_number_fails_who_reads_it(
    poisoned_model: TorchEngine,
) -> None:
    engine = poisoned_model
    engine.store_tokens(int32(0, 1), int32(POISON, 65))
    outputs = (OutputSpec(int32(0), SamplerSpec()),)
    projections = (
        ProjectRequest(int32(1), int32(0), outputs),
        ProjectRequest(int32(0), int32(0), outputs),
        ProjectRequest(int32(0), int32(0), (OutputSpec(int32(0), hidden=True),)),
        ProjectRequest(int32(1), int32(0), outputs),
    )
    forwards = (Context([0]).feed([1], input_slots=[0]), Context([1]).feed([2]))
    result = engine.execute(Batch(forwards, projections=projections))
    assert [isinstance(r, EngineError) for r in result.forwards] == [1, 0]
    assert [isinstance(r, EngineError) for r in result.projections] == [0, 1, 1, 0]


def test_a_failure_of_torch_is_an_engine_error(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(torch.nn.functional, "embedding", fail)
    with pytest.raises(EngineError, match="torch failed in a batch: out of memory"):
        run(tiny_model.engine, Context([0]).feed(b"a"))


def test_a_cache_that_cannot_be_allocated_stops_the_start(tiny_llama: Path) -> None:
    with pytest.raises(ConfigError, match="fewer --kv-pages"):
        open_engine(tiny_llama, name="m", num_pages=2**45)
    with pytest.raises(ConfigError, match=r"hidden states need .* cannot be allocated"):
        open_engine(tiny_llama, name="m", num_pages=1, num_embeds=2**50)
    with pytest.raises(ConfigError, match="zero or more places"):
        open_engine(tiny_llama, name="m", num_pages=1, num_embeds=-1)


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
