from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from pie_trio.control.pages import NO_PAGE, PagePool
from pie_trio.errors import OutOfPagesError

NUM_PAGES, PAGE_SIZE = 5, 3
INDEX = st.integers(0, 1000)


class PoolMachine(RuleBasedStateMachine):
    """Owners and pins as plain lists: whoever is in neither is free."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(num_pages=NUM_PAGES, page_size=PAGE_SIZE)
        self.owners: list[int] = []
        self.pins: list[int] = []
        self.positions: dict[int, list[int]] = {}

    def held(self) -> set[int]:
        return {*self.owners, *self.pins}

    def pick(self, index: int) -> int:
        return self.owners[index % len(self.owners)]

    @rule()
    def allocate(self) -> None:
        page = self.pool.allocate()
        if len(self.held()) == NUM_PAGES:
            assert page == NO_PAGE
            return
        assert page not in self.held(), "a page is never lent twice"
        self.owners.append(page)
        self.positions[page] = [-1] * PAGE_SIZE

    @precondition(lambda self: self.owners)
    @rule(index=INDEX, slot=st.integers(0, PAGE_SIZE - 1), position=st.integers(0, 99))
    def write(self, index: int, slot: int, position: int) -> None:
        page = self.pick(index)
        if self.owners.count(page) == 1:
            self.pool.positions[page, slot] = position
            self.positions[page][slot] = position

    @precondition(lambda self: self.owners)
    @rule(index=INDEX)
    def share(self, index: int) -> None:
        page = self.pick(index)
        self.pool.share(page)
        self.owners.append(page)

    @precondition(lambda self: self.owners)
    @rule(index=INDEX)
    def release(self, index: int) -> None:
        page = self.pick(index)
        self.pool.release(page)
        self.owners.remove(page)

    @precondition(lambda self: self.owners)
    @rule(index=INDEX)
    def pin(self, index: int) -> None:
        page = self.pick(index)
        self.pool.pin(page)
        self.pins.append(page)

    @precondition(lambda self: self.pins)
    @rule(index=INDEX)
    def unpin(self, index: int) -> None:
        self.pool.unpin(self.pins.pop(index % len(self.pins)))

    @precondition(lambda self: self.owners)
    @rule(index=INDEX)
    def make_writable(self, index: int) -> None:
        page = self.pick(index)
        if self.owners.count(page) == 1:
            assert self.pool.make_writable(page) == page
        elif len(self.held()) == NUM_PAGES:
            with pytest.raises(OutOfPagesError):
                self.pool.make_writable(page)
        else:
            copy = self.pool.make_writable(page)
            assert copy not in self.held(), "a page is never lent twice"
            self.owners.remove(page)
            self.owners.append(copy)
            self.positions[copy] = self.positions[page].copy()

    @rule()
    def nothing_happens_to_the_missing_page(self) -> None:
        self.pool.share(NO_PAGE)
        self.pool.release(NO_PAGE)

    @invariant()
    def every_page_is_free_or_held(self) -> None:
        self.pool.check()
        assert self.pool.num_free == NUM_PAGES - len(self.held())
        counts = Counter(self.owners)
        for page in range(NUM_PAGES):
            assert self.pool.num_owners(page) == counts[page]

    @invariant()
    def positions_are_those_that_were_written(self) -> None:
        for page in self.held():
            assert self.pool.positions[page].tolist() == self.positions[page]


TestPool = PoolMachine.TestCase


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
    copy = pool.make_writable(page)
    pool.positions[copy, 1] = 9
    assert pool.positions[[page, copy]].tolist() == [[3, 4], [3, 9]]
    assert (pool.num_owners(page), pool.num_owners(copy)) == (1, 1)


def test_a_pinned_page_is_not_lent_although_nobody_owns_it() -> None:
    pool = PagePool(num_pages=1, page_size=2)
    page = pool.allocate()
    pool.pin(page)
    pool.release(page)
    assert pool.num_free == 0
    assert pool.allocate() == NO_PAGE
    pool.unpin(page)
    assert pool.allocate() == page


def test_the_missing_page_cannot_be_made_writable() -> None:
    pool = PagePool(num_pages=3, page_size=2)
    with pytest.raises(OutOfPagesError) as caught:
        pool.make_writable(NO_PAGE)
    assert (caught.value.free, caught.value.total) == (3, 3)
    np.testing.assert_array_equal(pool.positions, -1)
