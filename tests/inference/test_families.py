"""Every family against transformers, as small random models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pie_trio.engine_api import Batch
from pie_trio.inference.engine import open_engine
from pie_trio.inference.model_directory import read_model_directory
from tests.inference.conftest import NUM_THREADS
from tests.inference.contexts import Context
from tests.inference.histories import (
    NUM_PAGES,
    PAGE_SIZE,
    Feed,
    check_composition,
    steps,
)
from tests.model_factory import write_model_directory
from tests.model_families import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pie_trio.inference.engine import DtypeName, TorchEngine
    from pie_trio.inference.kernels.choosing import KernelsName

transformers: Any = pytest.importorskip(
    "transformers", reason="transformers is not installed: it is the reference"
)

TOLERANCE = 1e-4
TOKENS = [256, *b"Once upon a time, in a land"]


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def directory(variant: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_directory(tmp_path_factory.mktemp("families") / "model", variant)


@pytest.fixture(scope="module")
def theirs(directory: Path) -> Any:
    return load_theirs(directory)


@pytest.fixture(scope="module")
def engine(directory: Path, kernels_name: KernelsName) -> TorchEngine:
    return open_ours(directory, kernels=kernels_name)


def load_theirs(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, attn_implementation="eager"
    )


def open_ours(
    directory: Path, dtype: DtypeName = "float32", kernels: KernelsName = "auto"
) -> TorchEngine:
    return open_engine(
        directory,
        name="m",
        num_pages=NUM_PAGES,
        page_size=PAGE_SIZE,
        dtype=dtype,
        num_threads=NUM_THREADS,
        kernels=kernels,
    ).engine


def their_logits(model: Any, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """Return the logits of all tokens, with the masks that transformers makes itself."""
    with torch.inference_mode():
        logits = model(torch.tensor([token_ids])).logits[0]
    return np.asarray(logits.float().numpy())


def our_logits(engine: TorchEngine, token_ids: Sequence[int]) -> NDArray[np.float32]:
    request = Context(range(NUM_PAGES)).feed(token_ids, rows=range(len(token_ids)))
    return engine.forward_logits(Batch((request,)))


def their_masked_logits(
    model: Any,
    token_ids: Sequence[int],
    positions: Sequence[int],
    mask: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Return the logits under a mask, into which windows are cut here."""
    config = model.config
    window = getattr(config, "sliding_window", None) or len(token_ids)
    narrow = mask & ~np.tri(len(mask), len(mask), -window, dtype=np.bool_)

    def bias(seen: NDArray[np.bool_]) -> torch.Tensor:
        lowest = torch.finfo(torch.float32).min
        zeros = torch.zeros(1, 1, *seen.shape)
        return zeros.masked_fill(~torch.tensor(seen), lowest)

    masks: Any = bias(narrow)
    if getattr(config, "layer_types", None):
        masks = {"full_attention": bias(mask), "sliding_attention": bias(narrow)}
    with torch.inference_mode():
        logits = model(
            torch.tensor([token_ids]),
            position_ids=torch.tensor([positions]),
            attention_mask=masks,
        ).logits
    return np.asarray(logits[0].double().numpy())


def test_a_prefill_gives_their_logits(engine: TorchEngine, theirs: Any) -> None:
    found = our_logits(engine, TOKENS)
    np.testing.assert_allclose(found, their_logits(theirs, TOKENS), atol=TOLERANCE)
    assert found.std() > 0.3  # it is no model that says the same of everything


def test_chunks_and_decodes_give_the_logits_of_their_cache(
    engine: TorchEngine, theirs: Any
) -> None:
    context = Context(range(0, NUM_PAGES, 2))
    cache = transformers.DynamicCache(config=theirs.config)
    start = 0
    for size in (9, 7, 1, 1, 4, 1, 1, 1):
        chunk, start = TOKENS[start : start + size], start + size
        with torch.inference_mode():
            expected = theirs(torch.tensor([chunk]), past_key_values=cache).logits[0]
        found = engine.forward_logits(Batch((context.feed(chunk, rows=range(size)),)))
        np.testing.assert_allclose(found, expected.numpy(), atol=TOLERANCE)


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=steps(0, 3), fork_after=st.integers(0, 4), seed=st.integers(0, 2**32 - 1))
def test_any_composition_gives_their_logits(
    engine: TorchEngine,
    theirs: Any,
    steps: list[list[Feed | None]],
    fork_after: int,
    seed: int,
) -> None:
    def reference(
        token_ids: Sequence[int], positions: Sequence[int], mask: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        return their_masked_logits(theirs, token_ids, positions, mask)

    check_composition(
        engine,
        reference,
        steps,
        fork_after=fork_after,
        seed=seed,
        tolerance=TOLERANCE,
        sees_itself=True,
    )


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_shards_of_half_precision_are_read(
    variant: str, tmp_path: Path, stored: torch.dtype
) -> None:
    directory = write_model_directory(tmp_path, variant, num_shards=3, dtype=stored)
    expected = their_logits(load_theirs(directory), TOKENS)
    found = our_logits(open_ours(directory), TOKENS)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_bfloat16_is_as_precise_as_theirs(
    variant: str, kernels_name: KernelsName, tmp_path: Path
) -> None:
    directory = write_model_directory(tmp_path, variant, dtype=torch.bfloat16)
    exact = their_logits(load_theirs(directory), TOKENS)
    theirs = their_logits(load_theirs(directory, torch.bfloat16), TOKENS)
    ours = our_logits(open_ours(directory, "bfloat16", kernels_name), TOKENS)
    error, their_error = (float(np.abs(x - exact).mean()) for x in (ours, theirs))
    assert error < 1.3 * their_error


def test_what_transformers_saves_is_the_same_model(
    directory: Path,
    theirs: Any,
    engine: TorchEngine,
    kernels_name: KernelsName,
    tmp_path: Path,
) -> None:
    theirs.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(
        (directory / "tokenizer.json").read_bytes()
    )
    saved, published = (
        read_model_directory(path).config for path in (tmp_path, directory)
    )
    assert saved == published
    found = our_logits(open_ours(tmp_path, kernels=kernels_name), TOKENS)
    np.testing.assert_array_equal(found, our_logits(engine, TOKENS))
