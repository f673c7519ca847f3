"""KV pages: who holds which, what was written where, and which of them are in device memory.

The control layer works with *virtual* pages. A virtual page has owners (handles and exports)
and pins (commands that have not finished). It gets a physical page of the device when a command
that writes it is about to run: allocating never waits and never fails, and a page that nobody
wrote costs nothing. Its contents can be moved to host memory and back (*swapped*), into another
physical page each time.

A page with more than one owner is never written in place: :meth:`PagePool.make_writable` gives
the writer a virtual page of its own, which the engine fills from the old one before the step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pie_trio.engine_api import PageCopy

__all__ = ["SWAPPED", "UNBOUND", "UNWRITTEN", "PageIds", "PagePool"]

UNBOUND = -1
"""In :attr:`PagePool.physical`: nothing was written to the page yet."""

SWAPPED = -2
"""In :attr:`PagePool.physical`: the page is in host memory."""

UNWRITTEN = -1
"""In :attr:`PagePool.positions`: nobody asked to write this slot."""

FIRST_CAPACITY = 256

T = TypeVar("T", bound=np.generic)

PageIds = NDArray[np.integer[Any]]
"""``[n]`` intp, virtual pages. Of any other dtype they would be converted at each use."""


class PagePool:
    """The pages of one model.

    All arrays are indexed by virtual page and grow with their number.

    Attributes:
        num_pages: Physical pages.
        page_size: Tokens in a page.
        positions: ``[capacity, page_size]`` int32, the position with which each slot is
            written; -1 where none is. Set when a command is submitted.
        filled: ``[capacity, page_size]`` bool, where the engine has written. What is not
            filled may hold what an earlier owner left in the device, and is never shown.
        physical: ``[capacity]`` int32, the page in device memory, ``UNBOUND`` or ``SWAPPED``.
        holes: Pages with slots that a withdrawn or failed command was to write; others may be
            among them while several commands use them.
        lost: Those of the holes whose contents have gone with an engine.
        swapped: Contents of the pages in host memory, each ``[page_bytes]`` uint8.
        num_moves: How often pages were moved to host memory.
        on_freed: Called when a physical page has become free.
        on_event: Is told what happens to a page: see :class:`~.trace.PageRecord`.
    """

    def __init__(self, *, num_pages: int, page_size: int) -> None:
        self.num_pages, self.page_size = num_pages, page_size
        self.positions: NDArray[np.int32] = np.full(
            (FIRST_CAPACITY, page_size), UNWRITTEN, np.int32
        )
        self.filled: NDArray[np.bool_] = np.zeros((FIRST_CAPACITY, page_size), np.bool_)
        self.physical: NDArray[np.int32] = np.full(FIRST_CAPACITY, UNBOUND, np.int32)
        self.holes: set[int] = set()
        self.lost: set[int] = set()
        self.swapped: dict[int, NDArray[np.uint8]] = {}
        self.num_moves = 0
        self.on_freed: Callable[[], None] = lambda: None
        self.on_event: Callable[[str, int, int, str], None] = _ignore_event
        self._owners: NDArray[np.int32] = np.zeros(FIRST_CAPACITY, np.int32)
        self._pins: NDArray[np.int32] = np.zeros(FIRST_CAPACITY, np.int32)
        self._ownerless: set[int] = set()  # pinned, and nobody's
        self._unused = list(range(FIRST_CAPACITY - 1, -1, -1))  # a stack
        self._free = list(range(num_pages - 1, -1, -1))  # a stack: page 0 goes first

    @property
    def num_free(self) -> int:
        """Physical pages that hold nothing."""
        return len(self._free)

    @property
    def num_virtual(self) -> int:
        """Virtual pages that somebody holds."""
        return len(self._owners) - len(self._unused)

    def num_owners(self, page: int) -> int:
        """Return how many handles and exports stand for ``page``."""
        return int(self._owners[page])

    def num_pins(self, page: int) -> int:
        """Return how many unfinished commands use ``page``."""
        return int(self._pins[page])

    # ---- virtual pages ----------------------------------------------------------------

    def allocate(self) -> int:
        """Return an unwritten virtual page with one owner."""
        if not self._unused:
            self._grow()
        page = self._unused.pop()
        self._owners[page] = 1
        return page

    def share(self, page: int) -> None:
        """Add an owner."""
        assert self._owners[page] > 0, "only a page that has an owner is shared"
        self._owners[page] += 1

    def release(self, page: int) -> None:
        """Take an owner away; the page is free once nothing holds it."""
        assert self._owners[page] > 0, "a page is released once an owner"
        self._owners[page] -= 1
        if self._owners[page] == 0:
            if self._pins[page] == 0:
                self._free_virtual(page)
            else:
                self._ownerless.add(page)

    def pin(self, pages: PageIds) -> None:
        """Keep these different pages from being freed while a command may use them."""
        self._pins[pages] += 1

    def unpin(self, pages: PageIds) -> None:
        """Undo one :meth:`pin`."""
        self._pins[pages] -= 1
        if self._ownerless and not self._ownerless.isdisjoint(found := pages.tolist()):
            for page in self._ownerless.intersection(found):
                if self._pins[page] == 0:
                    self._free_virtual(page)

    def make_writable(self, page: int) -> int:
        """Return ``page``, or if it is shared, a page of its own for one of the owners.

        The caller lets the engine copy the old page to the new one before it writes.
        Ownership moves along.
        """
        if self._owners[page] == 1:
            return page
        copy = self.allocate()
        self.positions[copy] = self.positions[page]
        self._owners[page] -= 1  # others own it still
        return copy

    def set_positions(
        self, pages: PageIds, start: int, positions: NDArray[np.int32]
    ) -> bool:
        """Note with which positions the slots from ``start`` of a context are written.

        Args:
            pages: ``[n]``, the context.
            start: Its first slot to be written.
            positions: ``[num_tokens]`` int32.

        Returns:
            Whether one of them had a position already.
        """
        size = self.page_size
        if len(positions) == 1:
            place = pages[start // size], start % size
            is_overwritten = bool(self.positions[place] >= 0)
            self.positions[place] = positions[0]
            return is_overwritten
        slots = np.arange(start, start + len(positions))
        places = pages[slots // size], slots % size
        is_overwritten = bool((self.positions[places] >= 0).any())
        self.positions[places] = positions
        return is_overwritten

    def add_swapped(
        self,
        positions: NDArray[np.int32],
        filled: NDArray[np.bool_],
        data: NDArray[np.uint8] | None,
    ) -> int:
        """Return a virtual page with one owner that comes from elsewhere, by host memory.

        Args:
            positions: ``[page_size]``: see :attr:`positions`.
            filled: ``[page_size]``: see :attr:`filled`.
            data: ``[page_bytes]``; None where nothing was ever written.
        """
        page = self.allocate()
        self.positions[page], self.filled[page] = positions, filled
        if data is not None:
            self.physical[page], self.swapped[page] = SWAPPED, data
        self._look_for_holes(page)
        return page

    def note_copied(self, source: int, target: int) -> None:
        """Note that the engine copied what is filled of one page to another."""
        self.filled[target] = self.filled[source]
        self._look_for_holes(target)

    def note_copied_tokens(self, copy: PageCopy) -> None:
        """Note that the engine copied tokens of one page to another."""
        source = self.filled[copy.source, _span(copy.source_offset, copy.count)].copy()
        self.filled[copy.target, _span(copy.target_offset, copy.count)] = source
        self._look_for_holes(copy.target)

    def note_not_copied(self, copy: PageCopy) -> None:
        """Note that tokens that were to be copied never will be."""
        self.filled[copy.target, _span(copy.target_offset, copy.count)] = False
        self._look_for_holes(copy.target)

    def note_lost(self, page: int) -> None:
        """Note that a page which was to be copied holds anything."""
        self.filled[page] = False
        self._look_for_holes(page)

    def lose_device(self) -> None:
        """Note that everything on the device is gone. No command is on its way.

        What is in host memory stays.
        """
        is_written = (self.positions >= 0).any(axis=1) & (self.physical != SWAPPED)
        for page in np.flatnonzero(self.physical >= 0).tolist():
            self.unbind(page)
        for page in np.flatnonzero(is_written).tolist():
            self.lost.add(page)
            self.note_lost(page)
        self.num_moves += 1

    def note_written(
        self, pages: PageIds, start: int, count: int, *, is_good: bool
    ) -> None:
        """Note that the engine wrote ``count`` slots of a context, or that it never will."""
        size = self.page_size
        first, last = start // size, (start + count - 1) // size
        if first == last:
            page = int(pages[first])
            self.filled[page, start % size : (start + count - 1) % size + 1] = is_good
            if not is_good or page in self.holes:
                self._look_for_holes(page)
            return
        slots = np.arange(start, start + count)
        self.filled[pages[slots // size], slots % size] = is_good
        for page in pages[first : last + 1].tolist():
            if not is_good or page in self.holes:
                self._look_for_holes(page)

    def _look_for_holes(self, page: int) -> None:
        # Other commands on their way may have cleared positions already of slots that one
        # before them is to see.
        is_last = self._pins[page] <= 1
        if is_last and (self.filled[page] | (self.positions[page] < 0)).all():
            self.holes.discard(page)
            self.lost.discard(page)
        else:
            self.holes.add(page)

    def _free_virtual(self, page: int) -> None:
        self._ownerless.discard(page)
        self.unbind(page)
        self.positions[page] = UNWRITTEN
        self.filled[page] = False
        self.holes.discard(page)
        self.lost.discard(page)
        self._unused.append(page)

    def _grow(self) -> None:
        size = len(self._owners)
        self.positions = _doubled(self.positions, UNWRITTEN)
        self.filled = _doubled(self.filled, 0)
        self.physical = _doubled(self.physical, UNBOUND)
        self._owners = _doubled(self._owners, 0)
        self._pins = _doubled(self._pins, 0)
        self._unused = list(range(2 * size - 1, size - 1, -1))

    # ---- physical pages ---------------------------------------------------------------

    def unbound(self, pages: PageIds) -> list[int]:
        """Return those of these pages that have no place on the device."""
        is_unbound = self.physical.take(pages) < 0
        if not np.count_nonzero(is_unbound):
            return []
        found: list[int] = pages[is_unbound].tolist()
        return found

    def bind(self, pages: PageIds, tenant: str = "") -> None:
        """Give a physical page to each of these that was never written.

        The caller knows that enough are free, and that none is in host memory.

        Args:
            pages: Virtual pages.
            tenant: Who writes them, for the trace.
        """
        for page in self.unbound(pages):
            assert self.physical[page] == UNBOUND, "what is swapped is not bound anew"
            place = self._free.pop()
            self.physical[page] = place
            self.on_event("bind", page, place, tenant)

    def unbind(self, page: int) -> None:
        """Take the contents of a page away, wherever they are."""
        place = int(self.physical[page])
        self.physical[page] = UNBOUND
        if place == UNBOUND:
            return
        self.on_event("unbind", page, place, "")
        if place == SWAPPED:
            del self.swapped[page]
            return
        self._free.append(place)
        self.on_freed()

    def exclusive(self, held: Sequence[int], pinned: Sequence[PageIds]) -> list[int]:
        """Return the pages on the device that nobody else has anything to do with.

        Args:
            held: The virtual pages of somebody's handles.
            pinned: The pages of each of their unfinished commands.
        """
        owners, pins = np.zeros_like(self._owners), np.zeros_like(self._pins)
        np.add.at(owners, np.array(held, np.intp), 1)
        for pages in pinned:
            pins[pages] += 1
        used = np.flatnonzero((owners + pins) > 0)
        is_own = (self._owners[used] == owners[used]) & (self._pins[used] == pins[used])
        found: list[int] = used[is_own & (self.physical[used] >= 0)].tolist()
        return found

    def swap_out(self, pages: Sequence[int], data: NDArray[np.uint8]) -> None:
        """Note that the contents of these pages are in host memory now: ``[n, page_bytes]``."""
        self.num_moves += 1
        for page, content in zip(pages, data, strict=True):
            assert self.physical[page] >= 0, "only what is on the device is swapped out"
            place = int(self.physical[page])
            self._free.append(place)
            self.physical[page] = SWAPPED
            self.swapped[page] = content
            self.on_event("swap out", page, place, "")

    def swap_in(self, pages: Sequence[int]) -> NDArray[np.uint8]:
        """Give physical pages to these and return what is to be written there.

        The caller knows that enough are free.
        """
        assert len(pages) <= self.num_free, "callers look whether there is room"
        data = np.stack([self.swapped.pop(page) for page in pages])
        for page in pages:
            place = self._free.pop()
            self.physical[page] = place
            self.on_event("swap in", page, place, "")
        return data

    # ---- invariants -------------------------------------------------------------------

    def check(self) -> None:
        """Assert what must hold after every command; for tests and debugging."""
        free, unused = set(self._free), set(self._unused)
        assert len(free) == len(self._free), "no page is free twice"
        assert len(unused) == len(self._unused), "no virtual page is unused twice"
        assert self._owners.min() >= 0, "owners are counted"
        assert self._pins.min() >= 0, "pins are counted"
        is_ownerless = (self._owners == 0) & (self._pins > 0)
        found = set(np.flatnonzero(is_ownerless).tolist())
        assert found == self._ownerless, "what only commands use is known"
        is_unused = np.zeros(len(self._owners), np.bool_)
        is_unused[list(unused)] = True
        is_held = (self._owners > 0) | (self._pins > 0)
        places = self.physical
        assert (is_held != is_unused).all(), "a virtual page is held or unused"
        assert (places[~is_held] == UNBOUND).all(), "what nobody holds is given back"
        is_swapped = np.flatnonzero(places == SWAPPED)
        assert set(is_swapped.tolist()) == self.swapped.keys(), "swapped or not"
        bound: list[int] = places[places >= 0].tolist()
        assert len(set(bound)) == len(bound), "no physical page stands for two"
        assert free.isdisjoint(bound), "a physical page is free or bound"
        assert len(free) + len(bound) == self.num_pages, "no physical page is lost"


def physical_of(pool: PagePool, pages: Iterable[int]) -> list[int]:
    """Return the physical pages behind virtual ones; for tests and traces."""
    return [int(pool.physical[page]) for page in pages]


def _ignore_event(_event: str, _page: int, _place: int, _tenant: str) -> None:
    pass


def _span(offset: int, count: int) -> slice:
    return slice(offset, offset + count)


def _doubled(array: NDArray[T], value: int) -> NDArray[T]:
    return np.concatenate([array, np.full_like(array, value)])
