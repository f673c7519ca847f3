from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.engine_api import SamplerSpec
from pie_trio.inference.distributions import top_tokens
from pie_trio.inference.sampler import sample, splitmix64, uniforms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12)
SAMPLERS = st.builds(
    SamplerSpec,
    temperature=st.sampled_from([0.0, 0.1, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 100]),
    top_p=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 2**64 - 1),
)


def sample_row(
    logits: Sequence[float] | NDArray[np.float32],
    sampler: SamplerSpec,
    position: int = 0,
) -> int:
    row = np.array([logits], np.float32)
    return int(sample(row, [sampler], np.array([position], np.int32))[0])


def draws(
    logits: Sequence[float], sampler: SamplerSpec, count: int
) -> NDArray[np.int32]:
    """Sample the same row at ``count`` positions."""
    rows = np.tile(np.array(logits, np.float32), (count, 1))
    return sample(rows, [sampler] * count, np.arange(count, dtype=np.int32))


def reference_kept(logits: Sequence[float], sampler: SamplerSpec) -> dict[int, float]:
    """Filter one row as SamplerSpec documents it; returns probability by token id."""
    scaled = np.array(logits, np.float64) / sampler.temperature
    probs = np.exp(scaled - scaled.max())
    ranked = sorted(range(len(probs)), key=lambda i: (-logits[i], i))
    ranked = ranked[: sampler.top_k or None]
    probs /= probs[ranked].sum()
    if sampler.top_p < 1.0:
        mass = np.cumsum(probs[ranked])
        ranked = ranked[: int((mass < sampler.top_p).sum()) + 1]
    ranked = [i for i in ranked if probs[i] >= sampler.min_p * probs[ranked[0]]]
    return {i: probs[i] / probs[ranked].sum() for i in sorted(ranked)}


def test_splitmix64_gives_the_published_sequence() -> None:
    gamma = 0x9E3779B97F4A7C15
    states = [(1234567 + i * gamma) % 2**64 for i in range(3)]
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert splitmix64(np.array(states, np.uint64)).tolist() == expected


def test_the_uniform_of_a_row_is_its_documented_hash() -> None:
    def hash_(value: int) -> int:
        return int(splitmix64(np.array([value % 2**64], np.uint64))[0])

    seeds, positions = [0, 7, -1, 2**70 + 3], np.array([0, 9, 2**31 - 1, 5], np.int32)
    expected = [
        (hash_(hash_(seed) + int(position)) >> 11) / 2**53
        for seed, position in zip(seeds, positions, strict=True)
    ]
    assert uniforms(seeds, positions).tolist() == expected


@given(
    st.lists(st.tuples(st.integers(0, 2**64), st.integers(0, 2**31 - 1)), max_size=6)
)
def test_a_uniform_is_the_same_among_few_and_many(rows: list[tuple[int, int]]) -> None:
    positions = np.array([position for _, position in rows], np.int32)
    together = uniforms([seed for seed, _ in rows], positions).tolist()
    alone = [
        uniforms([seed], positions[row : row + 1]).item()
        for row, (seed, _) in enumerate(rows)
    ]
    assert together == alone


def test_uniforms_are_uniform_over_seeds_and_over_positions() -> None:
    over_seeds = uniforms(range(10_000), np.zeros(10_000, np.int32))
    over_positions = uniforms([5] * 10_000, np.arange(10_000, dtype=np.int32))
    for values in (over_seeds, over_positions):
        counts, _ = np.histogram(values, bins=10, range=(0, 1))
        assert abs(counts - 1000).max() < 150  # five standard deviations
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.05


def test_greedy_takes_the_lower_id_of_equals() -> None:
    assert sample_row([1.0, 3.0, 3.0], SamplerSpec()) == 1


def test_greedy_ignores_everything_else() -> None:
    spec = SamplerSpec(temperature=0.0, top_k=3, top_p=0.5, min_p=0.5, seed=4)
    assert sample_row([0.0, 9.0, 1.0], spec) == 1


def test_the_seed_and_the_position_decide_a_draw() -> None:
    flat, spec = [0.0] * 1000, SamplerSpec(temperature=1.0, seed=1)
    assert sample_row(flat, spec, 3) == sample_row(flat, spec, 3)
    assert sample_row(flat, spec, 3) != sample_row(flat, spec, 4)
    other = SamplerSpec(temperature=1.0, seed=2)
    assert sample_row(flat, spec, 3) != sample_row(flat, other, 3)


@pytest.mark.parametrize(
    "spec",
    [
        SamplerSpec(temperature=1.0),
        SamplerSpec(temperature=0.5),
        SamplerSpec(temperature=2.0, top_k=3),
        SamplerSpec(temperature=1.0, top_p=0.8),
        SamplerSpec(temperature=1.0, min_p=0.2),
        SamplerSpec(temperature=1.5, top_k=4, top_p=0.9, min_p=0.1),
    ],
    ids=repr,
)
def test_draws_follow_the_documented_distribution(spec: SamplerSpec) -> None:
    logits = [0.3, 2.0, -1.0, 1.2, 1.9, 0.0]
    count = 20_000
    found = np.bincount(draws(logits, spec, count), minlength=len(logits)) / count
    expected = np.zeros(len(logits))
    for token_id, prob in reference_kept(logits, spec).items():
        expected[token_id] = prob
    # Five standard deviations of a share; a share of 0 must be exactly that.
    assert (abs(found - expected) <= 5 * np.sqrt(expected / count)).all()


@given(LOGITS, SAMPLERS, st.integers(0, 10_000))
def test_a_draw_inverts_the_distribution_in_the_order_of_ids(
    logits: list[float], sampler: SamplerSpec, position: int
) -> None:
    token_id = sample_row(logits, sampler, position)
    if sampler.temperature == 0.0:
        assert token_id == int(np.argmax(np.array(logits, np.float32)))
        return
    kept = reference_kept(logits, sampler)
    point = uniforms([sampler.seed], np.array([position], np.int32))[0]
    # Where the point lies within rounding of a boundary, either neighbour is right.
    upper = np.cumsum(list(kept.values()))
    near = [
        key
        for key, low, high in zip(kept, [0.0, *upper[:-1]], upper, strict=True)
        if low - 1e-5 <= point <= high + 1e-5
    ]
    borderline = is_borderline(logits, sampler)
    assert token_id in near or borderline


def is_borderline(logits: Sequence[float], sampler: SamplerSpec) -> bool:
    """Say whether rounding to float32 may change which tokens pass the filters."""
    specs = [
        SamplerSpec(
            sampler.temperature,
            sampler.top_k,
            sampler.top_p + (shift if 0 < sampler.top_p < 1 else 0),
            sampler.min_p * (1 + shift),
        )
        for shift in (-1e-5, 0.0, 1e-5)
    ]
    return len({tuple(reference_kept(logits, spec)) for spec in specs}) > 1


@given(st.lists(st.tuples(st.integers(0, 2**32), SAMPLERS), min_size=1, max_size=6))
def test_rows_do_not_influence_each_other(rows: list[tuple[int, SamplerSpec]]) -> None:
    logits = np.stack(
        [
            np.random.default_rng(s).normal(size=40).astype(np.float32) * 3
            for s, _ in rows
        ]
    )
    samplers = [sampler for _, sampler in rows]
    positions = np.arange(len(rows), dtype=np.int32)
    together = sample(logits, samplers, positions).tolist()
    alone = [sample_row(logits[i], samplers[i], i) for i in range(len(rows))]
    assert together == alone


@pytest.mark.parametrize(
    "spec",
    [
        SamplerSpec(temperature=5.0, top_p=0.99, seed=3),
        SamplerSpec(temperature=5.0, min_p=0.001, seed=3),
        SamplerSpec(temperature=5.0, top_k=2500, seed=3),
        SamplerSpec(temperature=5.0, top_k=2500, top_p=0.999, seed=3),
        SamplerSpec(temperature=0.5, top_p=0.9, seed=3),
    ],
    ids=repr,
)
def test_filters_look_beyond_the_first_candidates_where_they_must(
    spec: SamplerSpec,
) -> None:
    logits = np.random.default_rng(0).normal(size=3000).astype(np.float32)
    kept = list(reference_kept(logits.tolist(), spec))
    found = set(draws(logits.tolist(), spec, 300).tolist())
    assert found <= set(kept)
    unlikely_half = set(sorted(kept, key=lambda i: logits[i])[: len(kept) // 2])
    assert found & unlikely_half


def test_tiny_temperatures_and_huge_logits_are_greedy() -> None:
    spec = SamplerSpec(temperature=1e-45, seed=1)
    assert sample_row([1.0, 1e30, -1e30], spec) == 1
    assert (
        sample_row([1.0, 2.0, -np.inf], SamplerSpec(temperature=1e-9, top_p=0.5)) == 1
    )


def test_a_token_at_minus_infinity_is_never_drawn() -> None:
    spec = SamplerSpec(temperature=100.0)
    assert set(draws([-np.inf, 0.0, -np.inf, 0.0, -np.inf], spec, 200).tolist()) == {
        1,
        3,
    }


def test_top_tokens_are_descending_with_ties_by_lower_id() -> None:
    logits = np.array(
        [[0.0, 5.0, -0.0, 5.0, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0]], np.float32
    )
    ids, probs = top_tokens(logits, 4)
    assert ids.tolist() == [[1, 3, 4, 0], [0, 1, 2, 3]]
    assert ids.dtype == np.int32
    assert probs.dtype == np.float32
    exact = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probs, np.take_along_axis(exact, ids, axis=1), rtol=1e-6)


@given(
    st.lists(
        st.sampled_from([-3.5, -0.0, 0.0, 1.0, 1e-30, 7.0]), min_size=1, max_size=30
    )
)
def test_top_tokens_agree_with_sorting(logits: list[float]) -> None:
    row = np.array([logits], np.float32)
    expected = sorted(range(len(logits)), key=lambda i: (-row[0, i], i))
    for count in {1, len(logits) // 2 or 1, len(logits)}:
        ids, _ = top_tokens(row, count)
        assert ids[0].tolist() == expected[:count]
