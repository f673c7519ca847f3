"""Filters that look at the whole rest of a row: typical-p, epsilon, eta, XTC; numpy only.

They come after top-k, top-p and min-p, which keep the first few of the likeliest tokens and are
a matter of :mod:`~.sampler`. All sums are the same with any number of zeros behind a row, which
is up to the rest of the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pie_trio.inference.distributions import top_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pie_trio.engine_api import SamplerSpec

__all__ = ["has_late_filter", "has_xtc", "restrict"]

# As many tokens closest to the entropy are looked at first: see sampler.py.
_NUM_CANDIDATES = 256

_BLOCK_SIZE = 64
_LOWEST = np.float32(-1e30)
"""In place of the logarithm of 0: times 0 it is 0."""


def has_late_filter(sampler: SamplerSpec) -> bool:
    """Say whether :func:`restrict` does anything for a row."""
    return (
        sampler.typical_p < 1.0
        or sampler.epsilon_cutoff > 0.0
        or sampler.eta_cutoff > 0.0
        or has_xtc(sampler)
    )


def has_xtc(sampler: SamplerSpec) -> bool:
    """Say whether a row needs a second random number."""
    # Of tokens that have more than half of the probability there are no two.
    return sampler.xtc_probability > 0.0 and sampler.xtc_threshold <= 0.5


def restrict(
    weights: NDArray[np.float32],
    samplers: Sequence[SamplerSpec],
    coins: NDArray[np.float64],
) -> None:
    """Set the weights of the tokens to 0 that the filters drop.

    Args:
        weights: ``[num_rows, num_columns]`` float32, in the order of token ids; 0 for what is
            dropped already. Changed in place.
        samplers: ``[num_rows]``.
        coins: ``[num_rows]`` float64 in [0, 1), for XTC.
    """
    _apply(_keep_typical, weights, samplers, lambda s: s.typical_p < 1.0)
    _apply(_keep_above_epsilon, weights, samplers, lambda s: s.epsilon_cutoff > 0.0)
    _apply(_keep_above_eta, weights, samplers, lambda s: s.eta_cutoff > 0.0)
    rows = [
        row
        for row, s in enumerate(samplers)
        if has_xtc(s) and coins[row] < s.xtc_probability
    ]
    _apply_to(_drop_top_choices, weights, samplers, rows)


def _apply(
    keep: Callable[[NDArray[np.float32], Sequence[SamplerSpec]], NDArray[np.bool_]],
    weights: NDArray[np.float32],
    samplers: Sequence[SamplerSpec],
    is_on: Callable[[SamplerSpec], bool],
) -> None:
    rows = [row for row, sampler in enumerate(samplers) if is_on(sampler)]
    _apply_to(keep, weights, samplers, rows)


def _apply_to(
    keep: Callable[[NDArray[np.float32], Sequence[SamplerSpec]], NDArray[np.bool_]],
    weights: NDArray[np.float32],
    samplers: Sequence[SamplerSpec],
    rows: Sequence[int],
) -> None:
    if rows:
        chosen = weights[rows]
        weights[rows] = chosen * keep(chosen, [samplers[row] for row in rows])


def _keep_typical(
    weights: NDArray[np.float32], samplers: Sequence[SamplerSpec]
) -> NDArray[np.bool_]:
    """Keep tokens whose information is close to the entropy, the closest first.

    See Meister et al. 2023, arXiv:2202.00666, section 4.
    """
    totals = _totals(weights)  # [R, 1]
    logs = _logs(weights)
    # The information of a token less the entropy: the logarithms of the total cancel out.
    mean = _totals(weights * np.maximum(logs, _LOWEST)) / totals
    closeness = (-np.abs(logs - mean)).astype(np.float32)  # -inf for what is dropped
    targets = np.array([s.typical_p for s in samplers])[:, None] * totals
    kept = np.zeros(weights.shape, np.bool_)
    pending, count = np.arange(len(weights)), _NUM_CANDIDATES
    while len(pending):
        count = min(count, weights.shape[1])
        columns = top_ids(closeness[pending], count)
        found = np.take_along_axis(weights[pending], columns, axis=1)
        sums = found.astype(np.float64).cumsum(axis=1)
        is_needed = np.ones(columns.shape, np.bool_)
        is_needed[:, 1:] = sums[:, :-1] < targets[pending]
        part = np.zeros((len(pending), weights.shape[1]), np.bool_)
        np.put_along_axis(part, columns, is_needed, axis=1)
        kept[pending] = part
        is_settled = sums[:, -1] >= targets[pending, 0]
        pending = pending[~is_settled & (count < weights.shape[1])]
        count *= 16
    return kept


def _keep_above_epsilon(
    weights: NDArray[np.float32], samplers: Sequence[SamplerSpec]
) -> NDArray[np.bool_]:
    """See Hewitt, Manning and Liang 2022, arXiv:2210.15191, section 3."""
    epsilon = np.array([s.epsilon_cutoff for s in samplers])[:, None]
    return _keep_likely(weights, epsilon * _totals(weights))


def _keep_above_eta(
    weights: NDArray[np.float32], samplers: Sequence[SamplerSpec]
) -> NDArray[np.bool_]:
    """See Hewitt, Manning and Liang 2022, arXiv:2210.15191, section 3.2."""
    totals = _totals(weights)
    mean = _totals(weights * np.maximum(_logs(weights), _LOWEST)) / totals
    entropies = np.log(totals) - mean
    epsilon = np.array([s.eta_cutoff for s in samplers])[:, None]
    bounds = np.minimum(epsilon, np.sqrt(epsilon) * np.exp(-entropies))
    return _keep_likely(weights, bounds * totals)


def _keep_likely(
    weights: NDArray[np.float32], bounds: NDArray[np.float64]
) -> NDArray[np.bool_]:
    kept: NDArray[np.bool_] = weights >= bounds.astype(np.float32)
    kept[np.arange(len(kept)), weights.argmax(axis=1)] = True
    return kept


def _drop_top_choices(
    weights: NDArray[np.float32], samplers: Sequence[SamplerSpec]
) -> NDArray[np.bool_]:
    """Drop all tokens that are likely enough but the least likely of them ("XTC").

    Of equally likely ones that is the one with the highest id.
    """
    thresholds = np.array([s.xtc_threshold for s in samplers])[:, None]
    bounds = (thresholds * _totals(weights)).astype(np.float32)
    # At a threshold of 0, what was dropped already is no choice.
    is_choice = (weights >= bounds) & (weights > 0.0)
    masked = np.where(is_choice, weights, np.float32(np.inf))
    last = weights.shape[1] - 1 - masked[:, ::-1].argmin(axis=1)
    kept = ~is_choice
    kept[np.arange(len(kept)), last] |= is_choice.any(axis=1)
    return kept


def _totals(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return ``[num_rows, 1]``, summed in blocks: zeros behind a row do not change it."""
    rest = -values.shape[1] % _BLOCK_SIZE
    if rest:
        values = np.pad(values, ((0, 0), (0, rest)))
    blocks = np.einsum("rbc->rb", values.reshape(len(values), -1, _BLOCK_SIZE))
    sums: NDArray[np.float64] = blocks.astype(np.float64).cumsum(axis=1)
    return sums[:, -1:]


def _logs(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the logarithms; -inf for what is dropped."""
    with np.errstate(divide="ignore"):
        result: NDArray[np.float32] = np.log(weights)
    return result
