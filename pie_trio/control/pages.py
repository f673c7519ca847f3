"""Physical KV pages: who holds which, and which positions were written where.

A page is free, or has owners (handles of inferlets) and pins (commands that have not finished).
A page with more than one owner is never written in place: :meth:`PagePool.make_writable` gives
the writer a copy of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pie_trio.errors import OutOfPagesError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["NO_PAGE", "PagePool"]

NO_PAGE = -1
"""Stands for a page that could not be allocated; the first command that writes it fails."""

UNWRITTEN = -1


class PagePool:
    """The pages of one model.

    Attributes:
        positions: ``[num_pages, page_size]`` int32, the position with which each slot was
            written; -1 where nothing was. Set when a command is submitted.
        filled: ``[num_pages, page_size]`` bool, where the engine has written since the page was
            lent. What is not filled may hold what an earlier owner left, and is never shown.
    """

    def __init__(self, *, num_pages: int, page_size: int) -> None:
        self.num_pages, self.page_size = num_pages, page_size
        self.positions: NDArray[np.int32] = np.full(
            (num_pages, page_size), UNWRITTEN, np.int32
        )
        self.filled: NDArray[np.bool_] = np.zeros((num_pages, page_size), np.bool_)
        self._owners = [0] * num_pages
        self._pins = [0] * num_pages
        self._free = list(range(num_pages - 1, -1, -1))  # a stack: page 0 goes first

    @property
    def num_free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    def num_owners(self, page: int) -> int:
        """Return how many handles stand for ``page``."""
        return self._owners[page]

    def allocate(self) -> int:
        """Return an unwritten page with one owner, or ``NO_PAGE`` if none is free."""
        if not self._free:
            return NO_PAGE
        page = self._free.pop()
        self._owners[page] = 1
        self.positions[page] = UNWRITTEN
        self.filled[page] = False
        return page

    def share(self, page: int) -> None:
        """Add an owner."""
        if page == NO_PAGE:
            return
        assert self._owners[page] > 0, "only a page that has an owner is shared"
        self._owners[page] += 1

    def release(self, page: int) -> None:
        """Take an owner away; the page is free once nothing holds it."""
        if page == NO_PAGE:
            return
        assert self._owners[page] > 0, "a page is released once an owner"
        self._owners[page] -= 1
        self._free_if_unheld(page)

    def pin(self, page: int) -> None:
        """Keep a page from being freed while a command may read or write it."""
        self._pins[page] += 1

    def unpin(self, page: int) -> None:
        """Undo one :meth:`pin`."""
        assert self._pins[page] > 0, "a page is unpinned once a pin"
        self._pins[page] -= 1
        self._free_if_unheld(page)

    def make_writable(self, page: int) -> int:
        """Return ``page``, or if it is shared, a page of its own for one of the owners.

        The caller copies what was written before it writes. Ownership moves along.

        Raises:
            OutOfPagesError: ``page`` is ``NO_PAGE``, or a copy is needed and no page is free.
        """
        if page == NO_PAGE:
            raise OutOfPagesError(needed=1, free=self.num_free, total=self.num_pages)
        if self._owners[page] == 1:
            return page
        copy = self.allocate()
        if copy == NO_PAGE:
            raise OutOfPagesError(needed=1, free=0, total=self.num_pages)
        self.positions[copy] = self.positions[page]
        self.release(page)
        return copy

    def check(self) -> None:
        """Assert what must hold after every command; for tests and debugging."""
        free = set(self._free)
        assert len(free) == len(self._free), "no page is free twice"
        for page in range(self.num_pages):
            assert self._owners[page] >= 0, "owners are counted"
            assert self._pins[page] >= 0, "pins are counted"
            is_held = self._owners[page] > 0 or self._pins[page] > 0
            assert is_held != (page in free), "a page is either held or free"

    def _free_if_unheld(self, page: int) -> None:
        if self._owners[page] == 0 and self._pins[page] == 0:
            self._free.append(page)
