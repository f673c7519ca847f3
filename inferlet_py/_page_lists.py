"""Pages of a context in order, with 0 where one was dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["behind_dropped", "held", "renumber"]


def held(pages: Sequence[int]) -> list[int]:
    """Return the pages that are there."""
    return [page for page in pages if page]


def renumber(pages: Sequence[int], numbers: Sequence[int]) -> list[int]:
    """Return the same order with other numbers, one for each page that is there."""
    left = iter(numbers)
    return [next(left) if page else 0 for page in pages]


def behind_dropped(pages: Sequence[int]) -> int:
    """Return the index behind the last page that was dropped; 0 if there is none."""
    return next((i + 1 for i in reversed(range(len(pages))) if not pages[i]), 0)
