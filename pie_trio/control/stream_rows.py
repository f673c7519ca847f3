"""The mask of a decode stream, which gets a column with each token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["StreamRows"]


class StreamRows:
    """What each token of a stream attends to: as :func:`~.masks.infer_mask`, step by step.

    Slots with a later position are seen once the stream has come to it; those that were masked
    one by one are seen by their own token only.

    Args:
        slots: ``[kv_len]`` int32, the positions of what is written before the stream's first
            token; negative where nothing is.
        position: Of its first token.
        hidden: ``[max_slots or more]`` bool, slots that were masked one by one.
        max_slots: How many there will be at most.
    """

    def __init__(
        self,
        slots: NDArray[np.int32],
        position: int,
        hidden: NDArray[np.bool_] | None,
        *,
        max_slots: int,
    ) -> None:
        kv_len = len(slots)
        self._hidden = hidden
        # Slots with a later position than the stream's, the nearest first; shared with forks.
        self._later_slots: NDArray[np.int32] = np.empty(0, np.int32)
        self._later_positions: NDArray[np.int32] = np.empty(0, np.int32)
        self._num_seen = 0  # of them
        self._row: NDArray[np.bool_] | None = None
        seen = (slots >= 0) & (slots <= position)
        later = slots > position
        if hidden is not None:
            seen &= ~hidden[:kv_len]
            later &= ~hidden[:kv_len]
        if hidden is None and seen.all():
            return
        self._row = np.ones((1, max_slots), np.bool_)
        self._row[0, :kv_len] = seen
        found = np.flatnonzero(later).astype(np.int32)
        order = np.argsort(slots[found], kind="stable")
        self._later_slots = found[order]
        self._later_positions = slots[self._later_slots]

    @property
    def is_whole(self) -> bool:
        """All slots are seen: there is no mask."""
        return self._row is None

    def next_row(self, slot: int, position: int) -> NDArray[np.bool_] | None:
        """Return the mask of the token in ``slot``, ``[1, slot + 1]``; None for all of it.

        The row before is not valid any more.
        """
        row = self._row
        if row is None:
            return None
        if self._num_seen < len(self._later_slots):
            start = self._num_seen
            positions = self._later_positions
            self._num_seen = int(np.searchsorted(positions, position, side="right"))
            row[0, self._later_slots[start : self._num_seen]] = True
        if self._hidden is not None and self._hidden[slot - 1]:
            row[0, slot - 1] = False
        row[0, slot] = True
        return row[:, : slot + 1]

    def fork(self, current: NDArray[np.bool_] | None) -> StreamRows:
        """Return another one that goes on from the current row."""
        copy = StreamRows.__new__(StreamRows)
        copy._hidden = self._hidden
        copy._later_slots, copy._num_seen = self._later_slots, self._num_seen
        copy._later_positions = self._later_positions
        copy._row = None if self._row is None else self._row.copy()
        assert (current is None) == (self._row is None), "a row comes from here"
        return copy
