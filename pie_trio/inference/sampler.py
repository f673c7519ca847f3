"""Chooses tokens from rows of logits; numpy only, shared by the CPU engine and the fake.

A draw inverts the cumulative distribution, in the order of token ids, at one uniform number
per row: multinomial sampling over a whole vocabulary is 15 times slower on a CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pie_trio.inference.distributions import top_ids, weights
from pie_trio.inference.filters import has_late_filter, has_xtc, restrict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pie_trio.engine_api import SamplerSpec

__all__ = ["coins", "sample", "splitmix64", "uniforms"]

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)

# Filters look at this many of the likeliest tokens first and at more only for rows where that
# did not settle it, because sorting 32,000 tokens takes 50 times longer.
_NUM_CANDIDATES = 256

# The running sum of a row is searched in two steps: over blocks, then within one of them.
_BLOCK_SIZE = 64

# Up to here a row takes less time on its own than numpy's calls for all rows at once.
_FEW_ROWS = 3

_LOW_BITS = 0xFFFF_FFFF_FFFF_FFFF


def splitmix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the first output of the generator SplitMix64 for each state.

    See Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195; the constants are those of
    https://prng.di.unimi.it/splitmix64.c.
    """
    mixed = values + _GOLDEN_GAMMA
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _mix(state: int) -> int:
    """Return what :func:`splitmix64` does for one state, 10 times faster than numpy would."""
    mixed = (state + 0x9E3779B97F4A7C15) & _LOW_BITS
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _LOW_BITS
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _LOW_BITS
    return mixed ^ (mixed >> 31)


def uniforms(seeds: Sequence[int], positions: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each row, from its seed and position alone.

    It is the upper 53 bits of ``splitmix64(splitmix64(seed) + position)``, so that the same
    seed gives the same tokens alone and in any batch, and on any backend.

    Args:
        seeds: ``[num_rows]``; their lower 64 bits count.
        positions: ``[num_rows]`` int32.
    """
    if len(seeds) <= _FEW_ROWS:
        pairs = zip(seeds, positions.tolist(), strict=True)
        few = [_mix(_mix(seed) + position) >> 11 for seed, position in pairs]
        return np.array(few, np.float64) * 2.0**-53
    low = np.array([seed & _LOW_BITS for seed in seeds], np.uint64)
    bits = splitmix64(splitmix64(low) + positions.astype(np.uint64))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def coins(
    samplers: Sequence[SamplerSpec], positions: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Return a second number in [0, 1) for each row that needs one, 0 for the others.

    It is that of :func:`uniforms` for the seed with every bit the other way round.
    """
    result = np.zeros(len(samplers))
    rows = [row for row, sampler in enumerate(samplers) if has_xtc(sampler)]
    if rows:
        seeds = [~samplers[row].seed for row in rows]
        result[rows] = uniforms(seeds, positions[rows])
    return result


def sample(
    logits: NDArray[np.float32],
    samplers: Sequence[SamplerSpec],
    positions: NDArray[np.int32],
    *,
    best: NDArray[np.int64] | None = None,
    shares: NDArray[np.float64] | None = None,
) -> NDArray[np.int32]:
    """Choose one token a row.

    Each filter sees what the one before it left, with the probabilities scaled to a sum of
    one again. Of equally likely tokens the one with the lower id comes first.

    Args:
        logits: ``[num_rows, vocab_size]`` float32, finite or -inf.
        samplers: ``[num_rows]``.
        positions: ``[num_rows]`` int32, of the tokens that the rows belong to.
        best: ``[num_rows]`` int64, the likeliest tokens, where the caller knows them.
        shares: ``[num_rows]`` float64, filled with the probabilities of the tokens after all
            filters, 1.0 for greedy rows; None does without.

    Returns:
        ``[num_rows]`` int32.
    """
    token_ids = (logits.argmax(axis=1) if best is None else best).astype(np.int32)
    plain: list[int] = []
    filtered: list[int] = []
    whole: list[int] = []
    for row, sampler in enumerate(samplers):
        if sampler.temperature > 0.0:
            if _has_early_filter(sampler):
                filtered.append(row)
            else:
                (whole if has_late_filter(sampler) else plain).append(row)
    if shares is not None:
        shares[:] = 1.0
    for draw, rows in (
        (_draw_plain, plain),
        (_draw_filtered, filtered),
        (_draw_whole, whole),
    ):
        if rows:
            specs = [samplers[row] for row in rows]
            own = None if shares is None else np.ones(len(rows))
            taken = _take_rows(logits, rows)
            token_ids[rows] = draw(taken, specs, positions[rows], own)
            if shares is not None:
                shares[rows] = own
    return token_ids


def _has_early_filter(sampler: SamplerSpec) -> bool:
    return sampler.top_k > 0 or sampler.top_p < 1.0 or sampler.min_p > 0.0


def _take_rows(
    logits: NDArray[np.float32], rows: Sequence[int] | NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the ascending ``rows`` of ``logits``; without a copy if these are all."""
    return logits if len(rows) == len(logits) else logits[rows]


def _draw_plain(
    logits: NDArray[np.float32],
    samplers: Sequence[SamplerSpec],
    positions: NDArray[np.int32],
    shares: NDArray[np.float64] | None,
) -> NDArray[np.int64]:
    points = uniforms([spec.seed for spec in samplers], positions)
    return _invert(weights(logits, _scales(samplers)), points, shares)


def _draw_whole(
    logits: NDArray[np.float32],
    samplers: Sequence[SamplerSpec],
    positions: NDArray[np.int32],
    shares: NDArray[np.float64] | None,
) -> NDArray[np.int64]:
    """Draw where nothing but late filters is asked for: nothing has to be sorted."""
    points = uniforms([spec.seed for spec in samplers], positions)
    candidates = weights(logits, _scales(samplers))
    restrict(candidates, samplers, coins(samplers, positions))
    return _invert(candidates, points, shares)


def _draw_filtered(
    logits: NDArray[np.float32],
    samplers: Sequence[SamplerSpec],
    positions: NDArray[np.int32],
    shares: NDArray[np.float64] | None,
) -> NDArray[np.int64]:
    points = uniforms([spec.seed for spec in samplers], positions)
    token_ids = np.empty(len(samplers), np.int64)
    pending = np.arange(len(samplers))
    # One more than top_k, so that the last candidate shows whether that was all.
    count = max(s.top_k + 1 if s.top_k else _NUM_CANDIDATES for s in samplers)
    while len(pending):
        specs = [samplers[row] for row in pending.tolist()]
        ids, candidates, is_settled = _likely(
            _take_rows(logits, pending), specs, min(count, logits.shape[1])
        )
        settled = pending[is_settled]
        if len(settled):
            ids, candidates = ids[is_settled], candidates[is_settled]
            rows: list[int] = settled.tolist()
            specs = [samplers[row] for row in rows]
            if any(map(has_late_filter, specs)):
                restrict(candidates, specs, coins(specs, positions[settled]))
            own = None if shares is None else np.ones(len(settled))
            choice = _invert(candidates, points[settled], own)
            token_ids[settled] = ids[np.arange(len(ids)), choice]
            if shares is not None:
                shares[settled] = own
        pending = pending[~is_settled]
        count *= 16
    return token_ids


def _likely(
    logits: NDArray[np.float32], samplers: Sequence[SamplerSpec], num_candidates: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
    """Apply the early filters to the likeliest tokens of each row.

    Returns:
        ``[num_rows, num_kept]`` int64 ids, those that were kept first and in ascending order;
        their weights, 0 behind them; and ``[num_rows]`` bool, False where the filters kept
        all candidates, so that they may keep tokens beyond them, too.
    """
    ids = top_ids(logits, num_candidates)  # [R, C]
    scales = _scales(samplers)
    candidates = weights(np.take_along_axis(logits, ids, axis=1), scales)  # [R, C]
    total = np.zeros(len(samplers), np.float32)
    wide = [row for row, s in enumerate(samplers) if s.top_p < 1.0 and not s.top_k]
    if wide:
        total[wide] = weights(_take_rows(logits, wide), scales[wide]).sum(axis=1)
    num_kept = _num_kept(candidates, total, samplers)
    is_settled = (num_kept < num_candidates) | (num_candidates == logits.shape[1])
    # Where a token stands depends on its own row alone, or sums could be rounded otherwise.
    is_kept = np.arange(num_candidates) < num_kept[:, None]
    order = np.argsort(np.where(is_kept, ids, logits.shape[1]), axis=1)
    order = order[:, : int(num_kept.max())]
    candidates = np.take_along_axis(candidates * is_kept, order, axis=1)
    return np.take_along_axis(ids, order, axis=1), candidates, is_settled


def _num_kept(
    candidates: NDArray[np.float32],
    total: NDArray[np.float32],
    samplers: Sequence[SamplerSpec],
) -> NDArray[np.int64]:
    """Return how many candidates of each row pass top-k, top-p and min-p: the first ones.

    Args:
        candidates: ``[num_rows, num_candidates]`` float32 weights, descending from 1.0.
        total: ``[num_rows]`` float32, sum of the weights of the whole vocabulary; read for
            rows without top_k only.
        samplers: ``[num_rows]``.
    """
    num_candidates: int = candidates.shape[1]
    top_k = np.array([min(s.top_k or num_candidates, num_candidates) for s in samplers])
    has_top_k = np.array([s.top_k > 0 for s in samplers])
    top_p = np.array([s.top_p for s in samplers])
    # The likeliest has the weight 1.0, so min_p is the threshold itself.
    min_p = np.array([s.min_p for s in samplers], np.float32)
    sums = np.cumsum(candidates.astype(np.float64), axis=1)
    mass = np.where(has_top_k, sums[np.arange(len(sums)), top_k - 1], total)
    num_nuclear = np.count_nonzero(sums < (top_p * mass)[:, None], axis=1) + 1
    num_nuclear[top_p >= 1.0] = num_candidates
    num_likely = np.count_nonzero(candidates >= min_p[:, None], axis=1)
    num_kept: NDArray[np.int64] = np.minimum(np.minimum(top_k, num_nuclear), num_likely)
    return num_kept


def _scales(samplers: Sequence[SamplerSpec]) -> NDArray[np.float32]:
    """Return the inverse temperatures, ``[num_rows, 1]`` float32."""
    # Its inverse must be finite; at 1e-30 a row has long been greedy.
    scales = [1.0 / max(s.temperature, 1e-30) for s in samplers]
    return np.array(scales, np.float32)[:, None]


def _invert(
    weights: NDArray[np.float32],
    points: NDArray[np.float64],
    shares: NDArray[np.float64] | None,
) -> NDArray[np.int64]:
    """Return for each row the column at which the running sum passes ``point * total``.

    ``shares``, if it is wanted, is filled with the parts that these have in the total.
    """
    num_rows, num_columns = weights.shape
    if spare := -num_columns % _BLOCK_SIZE:  # none with the vocabularies of most models
        padded = np.zeros((num_rows, num_columns + spare), np.float32)
        padded[:, :num_columns] = weights
        weights = padded
    blocks = weights.reshape(num_rows, -1, _BLOCK_SIZE)
    # As float32, which is twice as fast, and the same however many rows there are.
    block_sums = np.einsum("rbc->rb", blocks).astype(np.float64)
    sums = block_sums.cumsum(axis=1)
    targets = points * sums[:, -1]
    if num_rows <= _FEW_ROWS:  # the same sums, with a third of the calls
        few = [_search_row(*each) for each in zip(blocks, sums, targets, strict=True)]
        columns = np.array(few, np.int64)
        if shares is not None:
            shares[:] = weights[np.arange(num_rows), columns] / sums[:, -1]
        return columns
    chosen = _first_beyond(sums, targets)
    rows = np.arange(len(chosen))
    before = np.where(chosen > 0, sums[rows, chosen - 1], 0.0)
    inside = blocks[rows, chosen].astype(np.float64).cumsum(axis=1)  # [R, C]
    columns = chosen * _BLOCK_SIZE
    columns += _first_beyond(inside, targets - before)
    if shares is not None:
        shares[:] = weights[rows, columns] / sums[:, -1]
    return columns


def _first_beyond(
    sums: NDArray[np.float64], targets: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return for each row where a running sum first exceeds its target.

    Rounding may carry the target up to the last sum. Then it is the last place at which the
    sum grew: never one without any weight.
    """
    is_before_last: NDArray[np.bool_] = sums < sums[:, -1:]
    is_before: NDArray[np.bool_] = sums <= targets[:, None]
    first: NDArray[np.int64] = np.minimum(
        np.count_nonzero(is_before, axis=1), np.count_nonzero(is_before_last, axis=1)
    )
    return first


def _search_row(
    blocks: NDArray[np.float32], sums: NDArray[np.float64], target: np.float64
) -> int:
    """Return what :func:`_invert` returns, for one row."""
    block = _first_beyond_in_row(sums, target)
    before = sums[block - 1] if block else np.float64(0.0)
    inside = blocks[block].astype(np.float64).cumsum()
    return block * _BLOCK_SIZE + _first_beyond_in_row(inside, target - before)


def _first_beyond_in_row(sums: NDArray[np.float64], target: np.float64) -> int:
    last = int(sums.searchsorted(float(sums[-1]), side="left"))
    return min(int(sums.searchsorted(float(target), side="right")), last)
