"""The filters of a sampler against loops written from their definitions."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.engine_api import SamplerSpec
from pie_trio.inference.sampler import coins, sample, uniforms

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray


def make_logits(seed: int, size: int, step: float) -> list[float]:
    """Return normal logits in steps: with wide ones, some are equal."""
    drawn = np.random.default_rng(seed).normal(size=size) * 2
    values: list[float] = (np.round(drawn / step) * step).astype(np.float32).tolist()
    return values


LOGITS = st.builds(
    make_logits,
    st.integers(0, 2**32),
    st.integers(1, 12),
    st.sampled_from([1e-3, 1e-3, 0.5]),
)
SAMPLERS = st.builds(
    SamplerSpec,
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    top_k=st.sampled_from([0, 0, 2, 5]),
    top_p=st.sampled_from([0.8, 1.0, 1.0]),
    min_p=st.sampled_from([0.0, 0.0, 0.1]),
    seed=st.integers(0, 2**64 - 1),
    typical_p=st.sampled_from([0.05, 0.4, 0.9, 1.0, 1.0]),
    epsilon_cutoff=st.sampled_from([0.0, 0.0, 0.02, 0.3]),
    eta_cutoff=st.sampled_from([0.0, 0.0, 0.01, 0.5]),
    xtc_threshold=st.sampled_from([0.0, 0.1, 0.3, 0.6]),
    xtc_probability=st.sampled_from([0.0, 0.5, 1.0]),
)

Probs = dict[int, float]
"""What is left of a row: probability by token id, ids ascending."""


def scaled(probs: Probs) -> Probs:
    total = math.fsum(probs.values())
    return {token: p / total for token, p in probs.items()}


def entropy(probs: Probs) -> float:
    return -math.fsum(p * math.log(p) for p in probs.values() if p > 0)


def likeliest_first(probs: Probs) -> list[int]:
    return sorted(probs, key=lambda token: (-probs[token], token))


def keep_smallest_set(probs: Probs, order: Sequence[int], mass: float) -> Probs:
    kept: list[int] = []
    for token in order:
        if kept and math.fsum(probs[t] for t in kept) >= mass:
            break
        kept.append(token)
    return {t: p for t, p in probs.items() if t in kept}


def top_k(probs: Probs, spec: SamplerSpec) -> Probs:
    kept = likeliest_first(probs)[: spec.top_k or None]
    return {t: p for t, p in probs.items() if t in kept}


def top_p(probs: Probs, spec: SamplerSpec) -> Probs:
    if spec.top_p >= 1:
        return probs
    return keep_smallest_set(probs, likeliest_first(probs), spec.top_p)


def min_p(probs: Probs, spec: SamplerSpec) -> Probs:
    bound = spec.min_p * max(probs.values())
    return {t: p for t, p in probs.items() if p >= bound}


def typical_p(probs: Probs, spec: SamplerSpec) -> Probs:
    if spec.typical_p >= 1:
        return probs
    expected = entropy(probs)
    order = sorted(probs, key=lambda t: (abs(-math.log(probs[t]) - expected), t))
    return keep_smallest_set(probs, order, spec.typical_p)


def at_least(probs: Probs, bound: float) -> Probs:
    kept = {t: p for t, p in probs.items() if p >= bound}
    best = likeliest_first(probs)[0]
    return kept or {best: probs[best]}


def epsilon(probs: Probs, spec: SamplerSpec) -> Probs:
    return at_least(probs, spec.epsilon_cutoff)


def eta(probs: Probs, spec: SamplerSpec) -> Probs:
    alpha = math.sqrt(spec.eta_cutoff)
    return at_least(probs, min(spec.eta_cutoff, alpha * math.exp(-entropy(probs))))


def xtc(probs: Probs, spec: SamplerSpec, coin: float) -> Probs:
    if coin >= spec.xtc_probability:
        return probs
    choices = [t for t in likeliest_first(probs) if probs[t] >= spec.xtc_threshold]
    return {t: p for t, p in probs.items() if t not in choices[:-1]}


EARLY: list[Callable[[Probs, SamplerSpec], Probs]] = [
    top_k,
    top_p,
    min_p,
    typical_p,
    epsilon,
    eta,
]


def reference(logits: Sequence[float], spec: SamplerSpec, coin: float) -> Probs:
    """Return what is left of one row after all filters."""
    peak = max(logits)
    # As float32: of equal weights, as of equal logits, the lower id comes first.
    probs = {
        token: float(np.exp(np.float32(np.float32(x - peak) / spec.temperature)))
        for token, x in enumerate(logits)
        if x > -math.inf
    }
    probs = scaled({t: p for t, p in probs.items() if p > 0})
    for keep in EARLY:
        probs = scaled(keep(probs, spec))
    return scaled(xtc(probs, spec, coin))


def is_borderline(logits: Sequence[float], spec: SamplerSpec, coin: float) -> bool:
    """Say whether rounding may decide what is kept: other thresholds keep something else."""
    expected = list(reference(logits, spec, coin))
    names = ("top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
    for name in (*names, "xtc_threshold", "temperature"):
        value = getattr(spec, name)
        for factor in (1 - 1e-4, 1 + 1e-4):
            if value == 0.0 or (name.endswith("_p") and value >= 1.0):
                continue
            other = replace(spec, **{name: value * factor})
            if list(reference(logits, other, coin)) != expected:
                return True
    return False


def has_near_ties(logits: Sequence[float], spec: SamplerSpec) -> bool:
    """Say whether two tokens are about equally far from the entropy, but not equally likely.

    Rounding then decides which of them comes first.
    """
    probs = scaled(
        {
            t: math.exp((x - max(logits)) / spec.temperature)
            for t, x in enumerate(logits)
        }
    )
    for keep in EARLY[:3]:
        probs = scaled(keep(probs, spec))
    expected = entropy(probs)
    far = sorted((abs(-math.log(p) - expected), p) for p in probs.values() if p > 0)
    return any(b[0] - a[0] < 1e-5 and a[1] != b[1] for a, b in itertools.pairwise(far))


def draw(
    logits: Sequence[float], spec: SamplerSpec, position: int
) -> tuple[int, float]:
    shares = np.zeros(1)
    row = np.array([logits], np.float32)
    where = np.array([position], np.int32)
    return int(sample(row, [spec], where, shares=shares)[0]), float(shares[0])


@given(LOGITS, SAMPLERS, st.integers(0, 10_000))
def test_a_draw_is_from_what_the_definitions_leave(
    logits: list[float], spec: SamplerSpec, position: int
) -> None:
    where = np.array([position], np.int32)
    coin = float(coins([spec], where)[0])
    kept = reference(logits, spec, coin)
    token_id, share = draw(logits, spec, position)
    if is_borderline(logits, spec, coin) or has_near_ties(logits, spec):
        return
    assert token_id in kept
    assert share == pytest.approx(kept[token_id], rel=1e-4)
    point = uniforms([spec.seed], where)[0]
    upper = float(sum(p for t, p in kept.items() if t <= token_id))
    assert upper - kept[token_id] - 1e-5 <= point <= upper + 1e-5


ROWS = st.lists(st.tuples(st.integers(0, 2**32), SAMPLERS), min_size=1, max_size=6)


@given(ROWS, st.sampled_from([40, 700]))
def test_rows_do_not_influence_each_other(
    rows: list[tuple[int, SamplerSpec]], vocab_size: int
) -> None:
    drawn = [
        np.random.default_rng(seed).normal(size=vocab_size) * 3 for seed, _ in rows
    ]
    logits = np.stack(drawn).astype(np.float32)
    samplers = [sampler for _, sampler in rows]
    positions = np.arange(len(rows), dtype=np.int32)
    shares = np.zeros(len(rows))
    together = sample(logits, samplers, positions, shares=shares).tolist()
    alone = [draw(logits[i].tolist(), samplers[i], i) for i in range(len(rows))]
    assert list(zip(together, shares.tolist(), strict=True)) == alone


@pytest.mark.parametrize(
    "spec",
    [
        SamplerSpec(temperature=2.0, typical_p=0.95, seed=3),
        SamplerSpec(temperature=2.0, typical_p=0.05, seed=3),
        SamplerSpec(temperature=2.0, epsilon_cutoff=0.0004, seed=3),
        SamplerSpec(temperature=2.0, eta_cutoff=0.01, seed=3),
        SamplerSpec(temperature=2.0, xtc_threshold=0.001, xtc_probability=1.0, seed=3),
        SamplerSpec(temperature=2.0, top_p=0.95, typical_p=0.9, seed=3),
        SamplerSpec(temperature=2.0, top_k=900, typical_p=0.9, seed=3),
    ],
    ids=repr,
)
def test_large_vocabularies_are_filtered_as_small_ones(spec: SamplerSpec) -> None:
    drawn = np.random.default_rng(1).normal(size=3000).astype(np.float32)
    logits = drawn.tolist()
    count = 1500
    kept = reference(logits, spec, 0.0)
    rows = np.tile(drawn, (count, 1))
    found = sample(rows, [spec] * count, np.arange(count, dtype=np.int32))
    # At the border float32 may decide otherwise about one or two tokens.
    assert len(set(found.tolist()) - set(kept)) <= 1
    expected = np.array(list(kept.values()))
    counts: NDArray[np.int64] = np.bincount(found, minlength=3000)[list(kept)]
    halves = np.argsort(expected)[: len(expected) // 2]
    share = expected[halves].sum()
    deviation = math.sqrt(share * (1 - share) / count)
    assert abs(counts[halves].sum() / count - share) < 5 * deviation + 1e-3


def test_eta_is_its_root_times_the_exponential_of_minus_the_entropy() -> None:
    probs = {0: 0.6, 1: 0.22, 2: 0.18}
    bound = math.sqrt(0.3) * math.exp(-entropy(probs))
    assert 0.18 < bound < 0.22 < 0.3
    logits = [math.log(p) for p in probs.values()]
    spec = SamplerSpec(1.0, eta_cutoff=0.3)
    assert {draw(logits, spec, position)[0] for position in range(200)} == {0, 1}


def test_xtc_drops_the_top_choices_as_often_as_was_asked() -> None:
    logits, count = [3.0, 2.9, 2.8, -4.0], 4000
    spec = SamplerSpec(1.0, xtc_threshold=0.2, xtc_probability=0.3, seed=8)
    rows = np.tile(np.array(logits, np.float32), (count, 1))
    found = sample(rows, [spec] * count, np.arange(count, dtype=np.int32))
    probs = scaled({t: math.exp(x) for t, x in enumerate(logits)})
    expected = 0.7 * (probs[0] + probs[1])
    share = float((found < 2).mean())
    assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / count)


def test_a_coin_has_nothing_to_do_with_the_draw() -> None:
    positions = np.arange(10_000, dtype=np.int32)
    spec = SamplerSpec(1.0, seed=5, xtc_probability=0.5)
    flips = coins([spec] * 10_000, positions)
    points = uniforms([5] * 10_000, positions)
    assert abs(np.corrcoef(flips, points)[0, 1]) < 0.05
    counts, _ = np.histogram(flips, bins=10, range=(0, 1))
    assert abs(counts - 1000).max() < 150  # five standard deviations


def test_greedy_ignores_every_filter() -> None:
    spec = SamplerSpec(
        typical_p=0.1, epsilon_cutoff=0.5, eta_cutoff=0.5, xtc_probability=1.0
    )
    assert draw([0.0, 3.0, 2.9], spec, 0) == (1, 1.0)


def test_what_is_impossible_stays_so_behind_every_filter() -> None:
    logits = [-math.inf, 1.0, -math.inf, 1.0]
    for spec in (
        SamplerSpec(1.0, typical_p=0.99),
        SamplerSpec(1.0, eta_cutoff=1.0),
        SamplerSpec(1.0, epsilon_cutoff=1.0),
        SamplerSpec(1.0, xtc_threshold=0.0, xtc_probability=1.0),
    ):
        assert {draw(logits, spec, position)[0] for position in range(50)} <= {1, 3}
