"""What a row of logits says: likeliest tokens, log-probabilities, entropy; numpy only.

Everything is of the softmax at temperature 1, over the whole vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["entropies", "logprobs", "top_ids", "top_tokens", "weights"]


def weights(
    logits: NDArray[np.float32], scales: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Return the softmax of ``logits * scales`` up to a factor: the largest is 1.0.

    Args:
        logits: ``[num_rows, vocab_size]`` float32, finite or -inf.
        scales: ``[num_rows, 1]`` float32, inverse temperatures; None for 1.
    """
    result: NDArray[np.float32] = logits - logits.max(axis=1, keepdims=True)
    if scales is not None:
        with np.errstate(over="ignore"):  # to -inf, so to the weight 0
            result *= scales
    return np.exp(result, out=result)


def top_tokens(
    logits: NDArray[np.float32], count: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return the likeliest tokens of each row with their probabilities.

    Args:
        logits: ``[num_rows, vocab_size]`` float32.
        count: At most ``vocab_size``.

    Returns:
        ``[num_rows, count]`` int32 ids, most likely first, of equal logits the lower id; and
        ``[num_rows, count]`` float32.
    """
    ids = top_ids(logits, count)
    total = weights(logits).sum(axis=1, keepdims=True)
    top_logits = np.take_along_axis(logits, ids, axis=1)
    return ids.astype(np.int32), weights(top_logits) / total


def logprobs(
    logits: NDArray[np.float32], token_ids: NDArray[np.int32]
) -> NDArray[np.float32]:
    """Return ``[num_rows]`` float32, the log-probability of one token of each row."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    chosen: NDArray[np.float32] = shifted[np.arange(len(logits)), token_ids]
    total: NDArray[np.float32] = np.exp(shifted, out=shifted).sum(axis=1)
    result: NDArray[np.float32] = chosen - np.log(total)
    return result


def entropies(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``[num_rows]`` float32, in nats."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    factors = np.exp(shifted)
    total = factors.sum(axis=1)
    shifted[factors == 0.0] = 0.0  # an impossible token: -inf * 0 would be NaN
    mean: NDArray[np.float32] = (factors * shifted).sum(axis=1) / total
    # Rounding may carry it below zero.
    result: NDArray[np.float32] = np.maximum(np.log(total) - mean, np.float32(0.0))
    return result


def top_ids(logits: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Return ``[num_rows, count]`` ids of the largest logits, descending, low ids first."""
    thresholds = _thresholds(logits, count)
    # Of all rows at once; ids ascend within a row, so that a stable sort keeps low ids first.
    # Flat, because numpy finds places in one dimension 4 times faster than in two.
    rows, ids = np.divmod(
        np.flatnonzero(logits >= thresholds[:, None]), logits.shape[1]
    )
    counts = np.bincount(rows, minlength=len(logits))
    starts = np.cumsum(counts) - counts
    places = np.arange(len(ids)) - starts[rows]
    shape = (len(logits), int(counts.max(initial=0)))
    candidates = np.full(
        shape, np.inf, np.float32
    )  # negated: what is not there is last
    candidates[rows, places] = -logits[rows, ids]
    ids_by_place = np.zeros(shape, np.int64)
    ids_by_place[rows, places] = ids
    order = np.argsort(candidates, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(ids_by_place, order, axis=1)


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
        # Block b holds every num_blocks-th logit: the maxima of neighbours come at once.
        logits = blocks.reshape(num_rows, block_size, num_blocks).max(axis=1)
    place = logits.shape[1] - count
    thresholds: NDArray[np.float32] = np.partition(logits, place, axis=1)[:, place]
    return thresholds
