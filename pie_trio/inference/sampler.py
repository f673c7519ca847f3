"""Chooses tokens from rows of logits; numpy only, shared by the CPU engine and the fake.

A draw inverts the cumulative distribution, in the order of token ids, at one uniform number
per row: multinomial sampling over a whole vocabulary is 15 times slower on a CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pie_trio.engine_api import SamplerSpec

__all__ = ["sample", "splitmix64", "take_rows", "top_tokens", "uniforms"]

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)

# Filters look at this many of the likeliest tokens first and at more only for rows where that
# did not settle it, because sorting 32,000 tokens takes 50 times longer.
_NUM_CANDIDATES = 256

# The running sum of a row is searched in two steps: over blocks, then within one of them.
_BLOCK_SIZE = 256


def splitmix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the first output of the generator SplitMix64 for each state.

    See Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195; the constants are those of
    https://prng.di.unimi.it/splitmix64.c.
    """
    mixed = values + _GOLDEN_GAMMA
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def uniforms(seeds: Sequence[int], positions: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each row, from its seed and position alone.

    It is the upper 53 bits of ``splitmix64(splitmix64(seed) + position)``, so that the same
    seed gives the same tokens alone and in any batch, and on any backend.

    Args:
        seeds: ``[num_rows]``; their lower 64 bits count.
        positions: ``[num_rows]`` int32.
    """
    low = np.array([seed & 0xFFFF_FFFF_FFFF_FFFF for seed in seeds], np.uint64)
    bits = splitmix64(splitmix64(low) + positions.astype(np.uint64))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def sample(
    logits: NDArray[np.float32],
    samplers: Sequence[SamplerSpec],
    positions: NDArray[np.int32],
) -> NDArray[np.int32]:
    """Choose one token a row.

    Each filter sees what the one before it left, with the probabilities scaled to a sum of
    one again. Of equally likely tokens the one with the lower id comes first.

    Args:
        logits: ``[num_rows, vocab_size]`` float32, finite or -inf.
        samplers: ``[num_rows]``.
        positions: ``[num_rows]`` int32, of the tokens that the rows belong to.

    Returns:
        ``[num_rows]`` int32.
    """
    token_ids: NDArray[np.int32] = np.argmax(logits, axis=1).astype(np.int32)
    drawn = [row for row, sampler in enumerate(samplers) if sampler.temperature > 0.0]
    points = uniforms([samplers[row].seed for row in drawn], positions[drawn])
    point_by_row = dict(zip(drawn, points.tolist(), strict=True))
    for draw, rows in (
        (_draw_plain, [row for row in drawn if not _has_filter(samplers[row])]),
        (_draw_filtered, [row for row in drawn if _has_filter(samplers[row])]),
    ):
        if rows:
            specs = [samplers[row] for row in rows]
            chosen_points = [point_by_row[row] for row in rows]
            token_ids[rows] = draw(take_rows(logits, rows), specs, chosen_points)
    return token_ids


def take_rows(logits: NDArray[np.float32], rows: Sequence[int]) -> NDArray[np.float32]:
    """Return the ascending ``rows`` of ``logits``; without a copy if these are all."""
    return logits if len(rows) == len(logits) else logits[rows]


def top_tokens(
    logits: NDArray[np.float32], count: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return the likeliest tokens of each row with their probabilities at temperature 1.

    Args:
        logits: ``[num_rows, vocab_size]`` float32.
        count: At most ``vocab_size``.

    Returns:
        ``[num_rows, count]`` int32 ids, most likely first, of equal logits the lower id; and
        ``[num_rows, count]`` float32 of the softmax over the whole vocabulary.
    """
    top_ids = _top_ids(logits, count)
    scale = np.ones((len(logits), 1), np.float32)
    total = _weights(logits, scale).sum(axis=1, keepdims=True)
    top_logits = np.take_along_axis(logits, top_ids, axis=1)
    return top_ids.astype(np.int32), _weights(top_logits, scale) / total


def _has_filter(sampler: SamplerSpec) -> bool:
    return sampler.top_k > 0 or sampler.top_p < 1.0 or sampler.min_p > 0.0


def _draw_plain(
    logits: NDArray[np.float32],
    samplers: Sequence[SamplerSpec],
    points: Sequence[float],
) -> NDArray[np.int64]:
    return _invert(_weights(logits, _scales(samplers)), points)


def _draw_filtered(
    logits: NDArray[np.float32],
    samplers: Sequence[SamplerSpec],
    points: Sequence[float],
) -> NDArray[np.int64]:
    token_ids = np.empty(len(samplers), np.int64)
    pending = list(range(len(samplers)))
    # One more than top_k, so that the last candidate shows whether that was all.
    count = max(s.top_k + 1 if s.top_k else _NUM_CANDIDATES for s in samplers)
    while pending:
        token_ids[pending], is_settled = _draw_among_top(
            take_rows(logits, pending),
            [samplers[row] for row in pending],
            [points[row] for row in pending],
            min(count, logits.shape[1]),
        )
        pending = [
            row for row, done in zip(pending, is_settled, strict=True) if not done
        ]
        count *= 16
    return token_ids


def _draw_among_top(
    logits: NDArray[np.float32],
    samplers: Sequence[SamplerSpec],
    points: Sequence[float],
    num_candidates: int,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Draw after filtering the likeliest tokens of each row.

    Returns:
        ``[num_rows]`` int64 ids; and ``[num_rows]`` bool, False where the filters kept all
        candidates, so that they may keep tokens beyond them, too.
    """
    ids = _top_ids(logits, num_candidates)  # [R, C]
    scales = _scales(samplers)
    candidates = _weights(np.take_along_axis(logits, ids, axis=1), scales)  # [R, C]
    total = np.zeros(len(samplers), np.float32)
    wide = [row for row, s in enumerate(samplers) if s.top_p < 1.0 and not s.top_k]
    if wide:
        total[wide] = _weights(take_rows(logits, wide), scales[wide]).sum(axis=1)
    kept = _kept(candidates, total, samplers)
    order = np.argsort(ids, axis=1)
    choice = _invert(np.take_along_axis(candidates * kept, order, axis=1), points)
    drawn = np.take_along_axis(ids, order, axis=1)[np.arange(len(ids)), choice]
    return drawn, ~kept[:, -1] | (num_candidates == logits.shape[1])


def _kept(
    candidates: NDArray[np.float32],
    total: NDArray[np.float32],
    samplers: Sequence[SamplerSpec],
) -> NDArray[np.bool_]:
    """Say which candidates pass the filters: in each row the first few.

    Args:
        candidates: ``[num_rows, num_candidates]`` float32 weights, descending from 1.0.
        total: ``[num_rows]`` float32, sum of the weights of the whole vocabulary; read for
            rows without top_k only.
        samplers: ``[num_rows]``.
    """
    kept = np.empty(candidates.shape, np.bool_)
    cumulative = np.cumsum(candidates, axis=1, dtype=np.float64)
    for row, sampler in enumerate(samplers):
        sums: NDArray[np.float64] = cumulative[row]
        num_kept, mass = candidates.shape[1], float(total[row])
        if sampler.top_k > 0:
            num_kept = min(num_kept, sampler.top_k)
            mass = float(sums[num_kept - 1])
        if sampler.top_p < 1.0:
            num_before = int(np.searchsorted(sums, sampler.top_p * mass, side="left"))
            num_kept = min(num_kept, num_before + 1)
        # The likeliest has the weight 1.0, so min_p is the threshold itself.
        num_likely = np.count_nonzero(candidates[row] >= np.float32(sampler.min_p))
        kept[row] = np.arange(candidates.shape[1]) < min(num_kept, num_likely)
    return kept


def _scales(samplers: Sequence[SamplerSpec]) -> NDArray[np.float32]:
    """Return the inverse temperatures, ``[num_rows, 1]`` float32."""
    # Its inverse must be finite; at 1e-30 a row has long been greedy.
    scales = [1.0 / max(s.temperature, 1e-30) for s in samplers]
    return np.array(scales, np.float32)[:, None]


def _weights(
    logits: NDArray[np.float32], scales: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the softmax of ``logits * scales`` up to a factor: the largest is 1.0."""
    weights: NDArray[np.float32] = logits - logits.max(axis=1, keepdims=True)
    with np.errstate(over="ignore"):  # to -inf, so to the weight 0
        weights *= scales
    return np.exp(weights, out=weights)


def _invert(weights: NDArray[np.float32], points: Sequence[float]) -> NDArray[np.int64]:
    """Return for each row the column at which the running sum passes ``point * total``."""
    starts = np.arange(0, weights.shape[1], _BLOCK_SIZE, dtype=np.int64)
    block_sums = np.add.reduceat(weights, starts, axis=1)
    sums = np.cumsum(block_sums, axis=1, dtype=np.float64)  # [R, num_blocks]
    columns = np.empty(len(weights), np.int64)
    for row, point in enumerate(points):
        target = point * float(sums[row, -1])
        block = _first_beyond(sums[row], target)
        start = block * _BLOCK_SIZE
        inside = np.cumsum(weights[row, start : start + _BLOCK_SIZE], dtype=np.float64)
        before = float(sums[row, block - 1]) if block else 0.0
        columns[row] = start + _first_beyond(inside, target - before)
    return columns


def _first_beyond(sums: NDArray[np.float64], target: float) -> int:
    """Return where a running sum first exceeds ``target``.

    Rounding may carry the target up to the last sum. Then it is the last place at which the
    sum grew: never one without any weight.
    """
    last = int(np.searchsorted(sums, float(sums[-1]), side="left"))
    return min(int(np.searchsorted(sums, target, side="right")), last)


def _top_ids(logits: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Return ``[num_rows, count]`` ids of the largest logits, descending, low ids first."""
    ids = np.empty((len(logits), count), np.int64)
    for row, threshold in enumerate(_thresholds(logits, count)):
        values: NDArray[np.float32] = logits[row]
        candidates = np.flatnonzero(values >= threshold)  # ascending ids
        order = np.argsort(-values[candidates], kind="stable")
        ids[row] = candidates[order[:count]]
    return ids


def _thresholds(logits: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Return for each row a number that ``count`` logits reach, and not many more.

    The ``count``-th largest maximum of a block is one: so many blocks have a logit that is at
    least as large. It is 10 times faster to find than the ``count``-th largest logit itself.
    """
    num_rows, vocab_size = logits.shape
    block_size = vocab_size // (2 * count)
    if block_size >= 4:
        num_blocks = vocab_size // block_size
        blocks = logits[:, : num_blocks * block_size]
        logits = blocks.reshape(num_rows, num_blocks, block_size).max(axis=2)
    place = logits.shape[1] - count
    thresholds: NDArray[np.float32] = np.partition(logits, place, axis=1)[:, place]
    return thresholds
