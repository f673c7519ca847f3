"""Changes rows of logits as their processors say, all rows at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pie_trio.inference.processors.history import repetition_lengths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pie_trio.inference.processors.processor import Processor

__all__ = ["change_logits", "pack_mask", "token_masks"]

_LARGEST_PENALTY = 1e9
"""Of DRY: a token that it forbids comes still before one that is not allowed."""


def change_logits(
    logits: NDArray[np.float32],
    processors: Sequence[Processor],
    masks: NDArray[np.uint32] | None,
) -> None:
    """Apply bias, penalties and masks, in place.

    Args:
        logits: ``[num_rows, vocab_size]`` float32.
        processors: ``[num_rows]``.
        masks: ``[num_rows, ceil(vocab_size / 32)]`` uint32, a bit for each token that the
            grammars allow; None where no row has one.
    """
    for row, processor in enumerate(processors):
        if len(processor.bias_ids):
            logits[row, processor.bias_ids] += processor.bias
    _penalize_tokens(logits, processors)
    for row, processor in enumerate(processors):
        if processor.spec.dry_multiplier > 0.0:
            _penalize_repetitions(logits[row], processor)
    for row, processor in enumerate(processors):
        if processor.allowed is not None:
            logits[row, ~processor.allowed] = -np.inf
    if masks is not None:
        rows = [row for row, p in enumerate(processors) if p.matcher is not None]
        is_allowed = _unpack(masks[rows], logits.shape[1])
        logits[rows] = np.where(is_allowed, logits[rows], np.float32(-np.inf))


def token_masks(
    processors: Sequence[Processor], masks: NDArray[np.uint32] | None
) -> NDArray[np.uint32]:
    """Return what processors allow that do nothing else, for where logits are not on the host.

    Args:
        processors: ``[num_rows]``, at least one; see :attr:`Processor.is_mask`.
        masks: As of :func:`change_logits`.

    Returns:
        ``[num_rows, ceil(vocab_size / 32)]`` uint32, a bit for each token, lowest first.
    """
    num_words = -(-processors[0].vocab_size // 32)
    found = np.full((len(processors), num_words), 0xFFFF_FFFF, np.uint32)
    for row, processor in enumerate(processors):
        if processor.matcher is not None:
            assert masks is not None, "some row has a grammar"
            found[row] = masks[row, :num_words]
        if processor.allowed is not None:
            found[row] &= pack_mask(processor.allowed)
    return found


def pack_mask(is_allowed: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """Return ``[ceil(vocab_size / 32)]`` uint32, a bit a token, lowest first."""
    packed = np.packbits(is_allowed, bitorder="little")
    return np.pad(packed, (0, -len(packed) % 4)).view("<u4").astype(np.uint32)


def _unpack(masks: NDArray[np.uint32], vocab_size: int) -> NDArray[np.bool_]:
    as_bytes = masks.astype("<u4").view(np.uint8)
    bits = np.unpackbits(as_bytes, axis=1, count=vocab_size, bitorder="little")
    return bits.view(np.bool_)


def _penalize_tokens(
    logits: NDArray[np.float32], processors: Sequence[Processor]
) -> None:
    """Apply the penalties of repetition, presence and frequency to all rows at once."""
    rows = [row for row, processor in enumerate(processors) if processor.has_penalty]
    counts = [processors[row].history.counts for row in rows]
    sizes = list(map(len, counts))
    if not sum(sizes):
        return
    specs = [processors[row].spec for row in rows]

    def each(values: Sequence[float]) -> NDArray[np.float32]:
        return np.array(values, np.float32).repeat(sizes)

    where = np.array(rows).repeat(sizes), np.concatenate([_as_ids(c) for c in counts])
    times = np.concatenate(
        [np.fromiter(c.values(), np.float32, len(c)) for c in counts]
    )
    repetition = each([spec.repetition_penalty for spec in specs])
    found = logits[where]
    found = np.where(found > 0.0, found / repetition, found * repetition)
    found -= each([spec.presence_penalty for spec in specs])
    found -= each([spec.frequency_penalty for spec in specs]) * times
    logits[where] = found


def _as_ids(counts: dict[int, int]) -> NDArray[np.int64]:
    return np.fromiter(counts, np.int64, len(counts))


def _penalize_repetitions(row: NDArray[np.float32], processor: Processor) -> None:
    spec = processor.spec
    lengths = repetition_lengths(processor.history.latest(), processor.breakers)
    for token, length in lengths.items():
        if length >= spec.dry_allowed_length:
            with np.errstate(over="ignore"):
                growth = np.float64(spec.dry_base) ** (length - spec.dry_allowed_length)
            row[token] -= min(float(spec.dry_multiplier * growth), _LARGEST_PENALTY)
