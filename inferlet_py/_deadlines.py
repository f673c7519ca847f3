"""Which cancel scope expires when. What expiry means is the scope's own affair."""

from __future__ import annotations

import heapq
import math
from typing import Protocol


class Expirable(Protocol):
    """Something that is cancelled once its deadline has passed."""

    def cancel(self) -> None:
        """Called once, when the deadline has passed."""


class Deadlines:
    """The deadlines of all open scopes.

    Scopes rarely expire: most are opened and closed again in time, one for every token
    perhaps. So a removed deadline stays in the heap until it comes up, or until stale
    entries outnumber the live ones.
    """

    _MIN_STALE = 64

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Expirable]] = []
        self._number_by_item: dict[Expirable, int] = {}
        self._last_number = 0

    def __len__(self) -> int:
        return len(self._number_by_item)

    def put(self, item: Expirable, deadline: float) -> None:
        """Set the deadline of an item, or with ``math.inf`` remove it."""
        self._number_by_item.pop(item, None)
        if deadline != math.inf:
            self._last_number += 1  # equal deadlines expire in the order they were set
            self._number_by_item[item] = self._last_number
            heapq.heappush(self._heap, (deadline, self._last_number, item))
        if len(self._heap) > 2 * len(self._number_by_item) + self._MIN_STALE:
            self._heap = [entry for entry in self._heap if self._is_live(entry)]
            heapq.heapify(self._heap)

    def nearest(self) -> float | None:
        """Return the next deadline, or None if there is none."""
        while self._heap and not self._is_live(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def expire(self, now: float) -> None:
        """Cancel every item whose deadline has passed, earliest first."""
        while self._heap and self._heap[0][0] <= now:
            entry = heapq.heappop(self._heap)
            if self._is_live(entry):
                del self._number_by_item[entry[2]]
                entry[2].cancel()

    def _is_live(self, entry: tuple[float, int, Expirable]) -> bool:
        return self._number_by_item.get(entry[2]) == entry[1]
