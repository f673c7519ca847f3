"""Draws on the device against those of the host: the same seeds give the same tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pie_trio.engine_api import SamplerSpec
from pie_trio.inference.gpu.sampling import best_tokens, draw, plan_draws
from pie_trio.inference.gpu.upload import Uploader
from pie_trio.inference.sampler import sample
from tests.inference.gpu.fake_runtime import FakeRuntime

SPECS = st.builds(
    SamplerSpec,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 0, 1, 5, 300]),
    top_p=st.sampled_from([1.0, 1.0, 0.5, 0.95]),
    min_p=st.sampled_from([0.0, 0.0, 0.1]),
    seed=st.integers(0, 2**64 - 1),
)


@settings(deadline=None)
@given(
    st.lists(SPECS, min_size=1, max_size=5),
    st.integers(0, 2**32 - 1),
    st.sampled_from([3, 64, 258, 1000]),
    st.booleans(),
)
def test_the_device_draws_what_the_host_draws(
    specs: list[SamplerSpec], seed: int, vocab_size: int, is_rounded: bool
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0.0, 3.0, (len(specs), vocab_size)).astype(np.float32)
    if is_rounded:  # as bfloat16 does: many are equal
        logits = logits.round()
    positions = rng.integers(0, 5000, len(specs)).astype(np.int32)
    head_index = np.arange(len(specs))
    draws = plan_draws(specs, positions, head_index)
    assert draws is not None
    tensors = Uploader(FakeRuntime()).upload(draws.arrays)
    on_device = torch.from_numpy(logits.copy())
    best, peaks = best_tokens(on_device)
    assert best.tolist() == logits.argmax(axis=1).tolist()
    assert peaks.tolist() == logits.max(axis=1).tolist()
    token_ids, is_settled = draw(on_device, best, draws, tensors)
    expected = sample(logits, specs, positions)
    unsettled = set(np.array(draws.filtered, np.int64)[~is_settled.numpy()].tolist())
    rows = [row for row in range(len(specs)) if row not in unsettled]
    assert token_ids[rows].tolist() == expected[rows].tolist()
    assert vocab_size > 256 or not unsettled


def test_several_draws_share_a_row_of_logits() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32)
    specs = [SamplerSpec(temperature=1.5, seed=seed) for seed in range(6)]
    positions = np.full(6, 7, np.int32)
    head_index = np.array([0, 1, 0, 1, 0, 1])
    draws = plan_draws(specs, positions, head_index)
    assert draws is not None
    tensors = Uploader(FakeRuntime()).upload(draws.arrays)
    on_device = torch.from_numpy(logits)
    token_ids, _ = draw(on_device, best_tokens(on_device)[0], draws, tensors)
    assert token_ids.tolist() == sample(logits[head_index], specs, positions).tolist()


def test_filters_that_keep_more_than_the_candidates_are_left_to_the_host() -> None:
    flat = np.zeros((2, 1000), np.float32)
    specs = [SamplerSpec(temperature=1.0, top_p=p, seed=1) for p in (0.1, 0.9)]
    draws = plan_draws(specs, np.zeros(2, np.int32), np.arange(2))
    assert draws is not None
    tensors = Uploader(FakeRuntime()).upload(draws.arrays)
    on_device = torch.from_numpy(flat)
    _, is_settled = draw(on_device, best_tokens(on_device)[0], draws, tensors)
    assert is_settled.tolist() == [True, False]


def test_late_filters_are_left_to_the_host() -> None:
    specs = [SamplerSpec(temperature=1.0, typical_p=0.5)]
    assert plan_draws(specs, np.zeros(1, np.int32), np.arange(1)) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_no_numbers_is_seen(value: float) -> None:
    logits = torch.zeros(2, 9)
    logits[1, 4] = value
    _, peaks = best_tokens(logits)
    assert peaks.isfinite().tolist() == [True, False]


def test_of_equal_logits_the_lowest_token_is_best() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0], [-0.0, 0.0, -1.0], [-3.0, -2.0, -2.0]])
    assert best_tokens(logits)[0].tolist() == [1, 0, 1]
