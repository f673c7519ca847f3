"""Attention masks: from the wire, or inferred from positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pie_trio.errors import BadArgumentError, LimitError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["MAX_MASK_ENTRIES", "decode_mask", "infer_mask"]

MAX_MASK_ENTRIES = 1 << 25


def infer_mask(
    earlier: NDArray[np.int32],
    positions: NDArray[np.int32],
    hidden: NDArray[np.bool_] | None = None,
    *,
    max_entries: int = MAX_MASK_ENTRIES,
) -> NDArray[np.bool_] | None:
    """Let each new token attend to the written slots with a position up to its own.

    Args:
        earlier: ``[kv_len - num_tokens]``, the positions of the slots before the new tokens';
            -1 where one was never written.
        positions: ``[num_tokens]``, of the new tokens.
        hidden: ``[kv_len or more]``, slots that were masked one by one; None for none. New
            tokens are seen all the same.
        max_entries: Room for a mask.

    Returns:
        ``[num_tokens, kv_len]``, or None where that is the plain causal mask.

    Raises:
        LimitError: It would be too large.
    """
    num_tokens, start = len(positions), len(earlier)
    # As unsigned numbers, the unwritten ones are the largest.
    is_plain = hidden is None or not hidden[:start].any()
    is_ordered = num_tokens == 1 or bool((positions[1:] > positions[:-1]).all())
    if (
        is_plain
        and is_ordered
        and (
            start == 0
            or int(np.maximum.reduce(earlier.view(np.uint32))) <= positions[0]
        )
    ):
        return None
    _check_size(num_tokens, start + num_tokens, max_entries)
    slot_positions = np.concatenate((earlier, positions))
    mask: NDArray[np.bool_] = (slot_positions >= 0) & (
        slot_positions <= positions[:, None]
    )
    if hidden is not None:
        mask[:, :start] &= ~hidden[:start]
    return mask


def decode_mask(
    rows: Sequence[Sequence[int]],
    *,
    num_tokens: int,
    kv_len: int,
    max_entries: int = MAX_MASK_ENTRIES,
) -> NDArray[np.bool_]:
    """Decode rows of run lengths: hidden, seen, hidden, ... in turn.

    Returns:
        ``[num_tokens, kv_len]``.

    Raises:
        BadArgumentError: A row is missing, too long, or sees nothing.
        LimitError: It would be too large.
    """
    if len(rows) != num_tokens:
        raise BadArgumentError(
            f"a mask has a row for each new token: expected {num_tokens}, got {len(rows)}"
        )
    _check_size(num_tokens, kv_len, max_entries)
    mask = np.zeros((num_tokens, kv_len), np.bool_)
    for index, runs in enumerate(rows):
        ends = np.cumsum(np.asarray(runs, np.int64))
        if len(ends) and int(ends[-1]) > kv_len:
            raise BadArgumentError(
                f"row {index} of the mask is {int(ends[-1])} slots long, "
                f"but the context has {kv_len}"
            )
        for run in range(1, len(ends), 2):
            mask[index, ends[run - 1] : ends[run]] = True
        if not mask[index].any():
            raise BadArgumentError(
                f"row {index} of the mask sees nothing: a token attends to one slot at least"
            )
    return mask


def _check_size(num_tokens: int, kv_len: int, max_entries: int) -> None:
    size = num_tokens * kv_len
    if size > MAX_MASK_ENTRIES:
        raise LimitError(
            f"a mask may have {MAX_MASK_ENTRIES} entries, but {num_tokens} tokens and "
            f"{kv_len} slots make {size}: forward fewer tokens at once"
        )
    if size > max_entries:
        raise LimitError(
            f"{num_tokens} tokens and {kv_len} slots make a mask of {size} entries, but those "
            f"of the commands in flight leave room for {max_entries}: wait for some of them, "
            "or forward fewer tokens at once"
        )
