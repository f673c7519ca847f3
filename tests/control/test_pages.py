from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from pie_trio.control.embeds import EmbedPool
from pie_trio.control.page_table import PageTable
from pie_trio.control.pages import SWAPPED, UNBOUND, PagePool
from pie_trio.engine_api import PageCopy
from pie_trio.errors import OutOfEmbedsError, UnknownHandleError
from tests.control.machines import CountedMachine

NUM_PAGES, PAGE_SIZE, NUM_EMBEDS = 6, 3, 3
INDEX = st.integers(0, 1000)
INFERLET = st.integers(0, 1)
OFFSET = st.integers(0, PAGE_SIZE - 1)
SLOT = tuple[int, bool]
"""What a model of a slot is: its position, or -1, and whether it was written."""


@dataclass
class Content:
    """What one virtual page should hold, and who holds it."""

    owners: int = 1
    pins: int = 0
    slots: list[SLOT] = field(default_factory=lambda: [(-1, False)] * PAGE_SIZE)
    data: list[int] = field(default_factory=lambda: [0] * PAGE_SIZE)


@dataclass(frozen=True)
class Write:
    """A forward of one token of an inferlet, on its way."""

    table: PageTable
    page: int
    slot: int


class PoolMachine(CountedMachine):
    """A pool beside a model in which every page has its own contents, and never moves.

    Two inferlets with tables of their own use it, and the exports of either.

    The device is an array of numbers: one for each slot, written with a fresh number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(num_pages=NUM_PAGES, page_size=PAGE_SIZE)
        self.embeds = EmbedPool(NUM_EMBEDS)
        self.tables = [PageTable(max_handles=99, page_size=PAGE_SIZE) for _ in range(2)]
        self.exported: list[int] = []
        self.device = np.full((NUM_PAGES, PAGE_SIZE), -1, np.int64)
        self.pages: dict[int, Content] = {}
        self.pending: list[Write] = []
        self.owned: list[int] = []
        self.stored: dict[int, bool] = {}
        self.embed_pins: list[int] = []
        self.numbers = count(1)
        self.num_freed = 0
        self.pool.on_freed = self.note_freed

    def note_freed(self) -> None:
        self.num_freed += 1

    @property
    def handles(self) -> list[tuple[PageTable, int]]:
        return [(table, handle) for table in self.tables for handle in table]

    def pick(self, index: int) -> tuple[PageTable, int]:
        """Return a handle, and whose it is."""
        return self.handles[index % len(self.handles)]

    def add(self, inferlet: int, page: int) -> tuple[PageTable, int]:
        """Add a handle; the other inferlet may use the same number."""
        table = self.tables[inferlet]
        number = max(table, default=-1) + 1
        table.check_unused([number])
        table.add(number, page)
        return table, number

    def forget_unheld(self) -> None:
        for page, content in list(self.pages.items()):
            if content.owners + content.pins == 0:
                del self.pages[page]

    # ---- handles ----------------------------------------------------------------------

    @rule(inferlet=INFERLET)
    def allocate(self, inferlet: int) -> None:
        page = self.pool.allocate()
        assert page not in self.pages, "a page is never lent twice"
        self.pages[page] = Content()
        self.add(inferlet, page)

    @precondition(lambda self: bool(self.handles))
    @rule(index=INDEX, inferlet=INFERLET)
    def fork(self, index: int, inferlet: int) -> None:
        """Share a page, with the same inferlet or with the other, as an import does."""
        table, handle = self.pick(index)
        page = table.get(handle)
        self.pool.share(page)
        self.pages[page].owners += 1
        other, fork = self.add(inferlet, page)
        if handle in table.hidden:
            other.hide(fork, table.hidden[handle])

    @precondition(lambda self: bool(self.handles))
    @rule(index=INDEX)
    def export(self, index: int) -> None:
        table, handle = self.pick(index)
        page = table.get(handle)
        self.pool.share(page)
        self.pages[page].owners += 1
        self.exported.append(page)

    @precondition(lambda self: self.exported)
    @rule(index=INDEX)
    def end_export(self, index: int) -> None:
        self.release_page(self.exported.pop(index % len(self.exported)))

    def release_page(self, page: int) -> None:
        self.pool.release(page)
        self.pages[page].owners -= 1
        self.forget_unheld()

    @precondition(lambda self: bool(self.handles))
    @rule(index=INDEX)
    def release(self, index: int) -> None:
        table, handle = self.pick(index)
        self.release_page(table.remove(handle))
        assert handle not in table.hidden
        with pytest.raises(UnknownHandleError):
            table.get(handle)

    @rule(inferlet=INFERLET)
    def end_inferlet(self, inferlet: int) -> None:
        """Give everything back; what is on its way is withdrawn, and unpins by and by."""
        for page in self.tables[inferlet].clear():
            self.release_page(page)

    @precondition(lambda self: bool(self.handles))
    @rule(index=INDEX, mask=st.lists(st.booleans(), min_size=3, max_size=3))
    def mask(self, index: int, mask: list[bool]) -> None:
        table, handle = self.pick(index)
        table.hide(handle, np.array(mask, np.bool_))
        shown = table.hidden_slots([handle])
        assert (shown is None) == (not any(mask))
        assert shown is None or shown.tolist() == mask

    # ---- commands ---------------------------------------------------------------------

    @precondition(lambda self: bool(self.handles))
    @rule(index=INDEX, slot=OFFSET, position=st.integers(0, 99))
    def submit_write(self, index: int, slot: int, position: int) -> None:
        """Plan a forward of one token, which runs later, or never."""
        table, handle = self.pick(index)
        old = table.get(handle)
        page = self.pool.make_writable(old)
        assert (page == old) == (self.pages[old].owners == 1)
        if page != old:
            self.pages[old].owners -= 1
            self.pages[page] = Content(slots=copy.deepcopy(self.pages[old].slots))
            table.replace(handle, page)
            if not self.copy_whole(old, page):
                self.pages[page].slots = [(p, False) for p, _ in self.pages[old].slots]
                self.pool.note_lost(page)
        self.pool.set_positions(
            np.array([page], np.int32), slot, np.array([position], np.int32)
        )
        slots = self.pages[page].slots
        slots[slot] = position, slots[slot][1]
        self.pool.pin(np.array([page], np.int32))
        self.pages[page].pins += 1
        self.pending.append(Write(table, page, slot))

    def copy_whole(self, old: int, new: int) -> bool:
        """Let the device copy a page, if there is room for it."""
        if not self.bind(old, new):
            return False
        source, target = self.pool.physical[[old, new]].tolist()
        self.device[target] = self.device[source]
        self.pool.note_copied(old, new)
        self.pages[new].slots = [
            (position, is_filled)
            for (position, _), (_, is_filled) in zip(
                self.pages[new].slots, self.pages[old].slots, strict=True
            )
        ]
        self.pages[new].data = self.pages[old].data.copy()
        return True

    def bind(self, *pages: int) -> bool:
        """Let pages be on the device, as before a step."""
        array = np.unique(np.array(pages, np.int32))
        lacking = self.pool.unbound(array)
        if len(lacking) > self.pool.num_free:
            return False
        swapped = [page for page in lacking if page in self.pool.swapped]
        if swapped:
            self.swap_in(swapped)
        self.pool.bind(array)
        return True

    @precondition(lambda self: bool(self.handles))
    @rule(index=INDEX, slot=OFFSET)
    def write(self, index: int, slot: int) -> None:
        """Run a forward at once, if nothing is on its way."""
        if not self.pending:
            self.submit_write(index, slot, slot)
            self.finish_write(0, "run")

    @precondition(lambda self: self.pending)
    @rule(index=INDEX, outcome=st.sampled_from(["run", "run", "withdraw", "fail"]))
    def finish_write(self, index: int, outcome: str) -> None:
        place = index % len(self.pending)
        page, slot = self.pending[place].page, self.pending[place].slot
        content = self.pages[page]
        if outcome != "withdraw" and not self.bind(page):
            return
        del self.pending[place]
        pages = np.array([page], np.int32)
        if outcome != "withdraw":
            number = next(self.numbers)
            self.device[self.pool.physical[page], slot] = number
            content.data[slot] = number
        is_good = outcome == "run"
        self.pool.note_written(pages, slot, 1, is_good=is_good)
        content.slots[slot] = content.slots[slot][0], is_good
        if is_good and content.pins == 1:
            lacks = any(p >= 0 and not is_filled for p, is_filled in content.slots)
            assert (page in self.pool.holes) == lacks, "nothing else is a hole"
        self.pool.unpin(pages)
        content.pins -= 1
        self.forget_unheld()

    @precondition(lambda self: bool(self.handles))
    @rule(origin=INDEX, into=INDEX, start=OFFSET, end=OFFSET, good=st.booleans())
    def copy_tokens(
        self, origin: int, into: int, start: int, end: int, good: bool
    ) -> None:
        table, handle = self.pick(origin)
        other, target = self.pick(into)
        old, new = table.get(handle), other.get(target)
        if self.pages[new].owners > 1 or not self.bind(old, new):
            return
        size = PAGE_SIZE - max(start, end)
        moved = self.pages[old].slots[start : start + size]
        data = self.pages[old].data[start : start + size]
        self.pool.positions[new, end : end + size] = [p for p, _ in moved]
        request = PageCopy(old, new, start, end, size)
        if not good:
            self.pages[new].slots[end : end + size] = [(p, False) for p, _ in moved]
            self.pool.note_not_copied(request)
            return
        self.pages[new].slots[end : end + size] = moved
        self.pages[new].data[end : end + size] = data
        self.pool.note_copied_tokens(request)
        places = self.pool.physical[[old, new]].tolist()
        content = self.device[places[0], start : start + size].copy()
        self.device[places[1], end : end + size] = content

    # ---- moves ------------------------------------------------------------------------

    @rule(inferlet=INFERLET)
    def suspend(self, inferlet: int) -> None:
        table = self.tables[inferlet]
        own = [write.page for write in self.pending if write.table is table]
        pins = [np.array([page], np.int32) for page in own]
        pages = self.pool.exclusive(table.values(), pins)
        held = Counter(table.values())
        expected = [
            page
            for page, content in self.pages.items()
            if self.pool.physical[page] >= 0
            and content.owners == held[page]
            and content.pins == own.count(page)
        ]
        assert sorted(pages) == sorted(expected), "what only it has to do with"
        if not pages:
            return
        data = self.device[self.pool.physical[pages]].view(np.uint8)
        self.pool.swap_out(pages, data.reshape(len(pages), PAGE_SIZE * 8))
        assert all(self.pool.physical[page] == SWAPPED for page in pages)

    @precondition(lambda self: self.pool.swapped)
    @rule()
    def resume(self) -> None:
        self.swap_in(list(self.pool.swapped)[: self.pool.num_free])

    def swap_in(self, pages: list[int]) -> None:
        if pages:
            data = self.pool.swap_in(pages)
            self.device[self.pool.physical[pages]] = data.view(np.int64)

    # ---- embeds -----------------------------------------------------------------------

    @rule()
    def allocate_embed(self) -> None:
        held = {*self.owned, *self.embed_pins}
        if len(held) == NUM_EMBEDS:
            with pytest.raises(OutOfEmbedsError):
                self.embeds.check_free(1)
            return
        self.embeds.check_free(1)
        slot = self.embeds.allocate()
        assert slot not in held, "a slot is never lent twice"
        self.owned.append(slot)
        self.stored[slot] = False

    @precondition(lambda self: self.owned)
    @rule(index=INDEX, good=st.booleans())
    def store(self, index: int, good: bool) -> None:
        slot = self.owned[index % len(self.owned)]
        (self.embeds.note_stored if good else self.embeds.note_lost)([slot])
        self.stored[slot] = good

    @precondition(lambda self: self.owned)
    @rule(index=INDEX, is_pinned=st.booleans())
    def release_embed(self, index: int, is_pinned: bool) -> None:
        slot = self.owned.pop(index % len(self.owned))
        if is_pinned:
            self.embeds.pin([slot])
            self.embed_pins.append(slot)
        self.embeds.release(slot)

    @precondition(lambda self: self.embed_pins)
    @rule(index=INDEX)
    def unpin_embed(self, index: int) -> None:
        self.embeds.unpin([self.embed_pins.pop(index % len(self.embed_pins))])

    # ---- what must hold ---------------------------------------------------------------

    @invariant()
    def every_page_is_free_or_held(self) -> None:
        self.pool.check()
        self.embeds.check()
        assert self.pool.num_virtual == len(self.pages)
        assert self.embeds.num_free == NUM_EMBEDS - len({*self.owned, *self.embed_pins})
        for page, content in self.pages.items():
            assert self.pool.num_owners(page) == content.owners
            assert self.pool.num_pins(page) == content.pins

    @invariant()
    def free_and_held_pages_are_all(self) -> None:
        places = {page: int(self.pool.physical[page]) for page in self.pages}
        on_device = [place for place in places.values() if place >= 0]
        assert len(set(on_device)) == len(on_device), "no place stands for two pages"
        assert self.pool.num_free + len(on_device) == NUM_PAGES
        swapped = {page for page, place in places.items() if place == SWAPPED}
        assert swapped == self.pool.swapped.keys()

    @invariant()
    def every_owner_is_a_handle_or_an_export(self) -> None:
        """So that what ends gives back exactly what it held."""
        owners = Counter(self.exported)
        for table in self.tables:
            owners.update(table.values())
        assert owners == Counter(
            {p: c.owners for p, c in self.pages.items() if c.owners}
        )

    @invariant()
    def what_is_on_its_way_keeps_its_page(self) -> None:
        """Also once its inferlet has ended."""
        for write in self.pending:
            assert write.page in self.pages
            assert self.pool.num_pins(write.page) > 0

    @invariant()
    def slots_are_what_was_asked_and_written(self) -> None:
        for page, content in self.pages.items():
            found = zip(
                self.pool.positions[page].tolist(),
                self.pool.filled[page].tolist(),
                strict=True,
            )
            assert list(found) == content.slots
        for slot in self.owned:
            assert self.embeds.are_filled([slot]) == self.stored[slot]

    @invariant()
    def what_was_written_is_where_the_page_is(self) -> None:
        for page, content in self.pages.items():
            place = int(self.pool.physical[page])
            if place >= 0:
                data = self.device[place].tolist()
            elif place == SWAPPED:
                data = self.pool.swapped[page].view(np.int64).tolist()
            else:
                assert not self.pool.filled[page].any(), "nothing is nowhere"
                continue
            for slot, (_, is_filled) in enumerate(content.slots):
                assert not is_filled or data[slot] == content.data[slot]

    @invariant()
    def what_was_never_to_be_written_or_failed_is_a_hole(self) -> None:
        unfinished = {(write.page, write.slot) for write in self.pending}
        for page, content in self.pages.items():
            gaps = {
                (page, slot)
                for slot, (position, is_filled) in enumerate(content.slots)
                if position >= 0 and not is_filled
            }
            if not gaps <= unfinished:
                assert page in self.pool.holes
        assert self.pool.holes <= self.pages.keys()


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=settings().max_examples // 2)


def test_positions_are_forgotten_when_a_page_is_used_again() -> None:
    pool = PagePool(num_pages=1, page_size=2)
    page = pool.allocate()
    pool.positions[page] = [3, 4]
    pool.release(page)
    assert pool.allocate() == page
    assert pool.positions[page].tolist() == [-1, -1]


def test_a_copy_carries_the_positions_and_leaves_those_of_the_other_alone() -> None:
    pool = PagePool(num_pages=2, page_size=2)
    page = pool.allocate()
    pool.positions[page] = [3, 4]
    pool.share(page)
    made = pool.make_writable(page)
    pool.positions[made, 1] = 9
    assert pool.positions[[page, made]].tolist() == [[3, 4], [3, 9]]
    assert (pool.num_owners(page), pool.num_owners(made)) == (1, 1)


def test_a_pinned_page_is_not_lent_although_nobody_owns_it() -> None:
    pool = PagePool(num_pages=1, page_size=2)
    page = pool.allocate()
    pages = np.array([page], np.int32)
    pool.bind(pages)
    pool.pin(pages)
    pool.release(page)
    assert pool.num_free == 0
    assert pool.allocate() != page
    pool.unpin(pages)
    assert pool.num_free == 1
    assert pool.allocate() == page


def test_there_are_more_pages_than_the_device_has() -> None:
    pool = PagePool(num_pages=1, page_size=2)
    pages = [pool.allocate() for _ in range(3000)]
    assert len(set(pages)) == 3000
    assert (pool.physical[pages] == UNBOUND).all()
    assert (pool.positions[pages] == -1).all()
    pool.check()
    for page in pages:
        pool.release(page)
    assert pool.num_virtual == 0


def test_what_was_lost_is_a_hole_though_a_later_command_has_cleared_its_position() -> (
    None
):
    pool = PagePool(num_pages=1, page_size=2)
    pages = np.array([pool.allocate()])
    pool.positions[pages[0]] = [0, -1]
    pool.pin(pages)  # by the command that was to write slot 0
    pool.pin(pages)  # by a copy of an unwritten slot to it
    pool.positions[pages[0], 0] = -1
    pool.note_written(pages, 0, 1, is_good=False)
    assert pool.holes == {int(pages[0])}
    pool.unpin(pages)
    pool.note_written(pages, 1, 1, is_good=True)
    assert pool.holes == set(), "nobody else is to see it"
    pool.unpin(pages)


def test_what_others_own_or_use_is_nobodys_alone() -> None:
    pool = PagePool(num_pages=4, page_size=2)
    own, shared, pinned, unbound = (pool.allocate() for _ in range(4))
    pool.bind(np.array([own, shared, pinned], np.int32))
    pool.share(shared)
    pool.pin(np.array([pinned, own], np.int32))
    own_pins = [np.array([own], np.int32)]
    assert pool.exclusive([own, shared, pinned, unbound], own_pins) == [own]
    assert pool.exclusive([shared, shared], []) == [shared], "by two handles"


def test_whoever_waits_for_a_page_hears_that_one_is_free() -> None:
    calls: list[int] = []
    pool = PagePool(num_pages=2, page_size=2)
    pool.on_freed = lambda: calls.append(pool.num_free)
    page = pool.allocate()
    pool.bind(np.array([page], np.int32))
    pool.release(page)
    pool.release(pool.allocate())
    assert calls == [2], "one that was never written takes no room"
