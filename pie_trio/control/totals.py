"""What an inferlet and its children have used in all: nothing of it comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pie_trio.errors import LimitError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Totals"]


class Totals:
    """Counts by kind.

    Args:
        limits: By kind; None for no limit.

    Attributes:
        used: By kind.
    """

    def __init__(self, limits: Mapping[str, int | None]) -> None:
        self.limits = dict(limits)
        self.used = dict.fromkeys(limits, 0)

    def has_room(self, kind: str, count: int = 1) -> bool:
        """Say whether so many more may be used."""
        limit = self.limits[kind]
        return limit is None or self.used[kind] + count <= limit

    def check(self, kind: str, count: int = 1) -> None:
        """Raise unless so many more may be used.

        Raises:
            LimitError: It names the kind, and both numbers.
        """
        if not self.has_room(kind, count):
            raise self.error(kind, count)

    def error(self, kind: str, count: int = 1) -> LimitError:
        """Return the error of whoever wants so many more."""
        return LimitError(
            f"{self.used[kind] + count} {kind.replace('_', ' ')} would be used in all, but the "
            f"inferlet and its children together may use {self.limits[kind]}: nothing of that "
            "comes back before it ends"
        )

    def add(self, kind: str, count: int = 1) -> None:
        """Count more, though it may be too much; less, where something did not happen."""
        self.used[kind] += count
