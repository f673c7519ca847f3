"""Handles of several inferlets: each means something in its own table, and quotas count them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from pie_trio.config import SharedLimits
from pie_trio.control.page_table import PageTable
from pie_trio.control.quotas import Quotas, Share
from pie_trio.errors import BadArgumentError, LimitError, UnknownHandleError
from tests.control.machines import CountedMachine

PAGE_SIZE = 2
OWNERS = ["ann", "ann", "bob"]
MAX_HANDLES, MAX_OF_USER, MAX_OF_SERVER = 4, 6, 8
NUMBERS = range(6)

INFERLET = st.integers(0, len(OWNERS) - 1)
NUMBER = st.sampled_from(NUMBERS)
MASK = st.lists(st.booleans(), min_size=PAGE_SIZE, max_size=PAGE_SIZE)


@dataclass
class Inferlet:
    """A table, and what it should hold.

    Attributes:
        values: By handle.
        hidden: By handle, where something is hidden.
    """

    owner: str
    share: Share
    table: PageTable
    values: dict[int, int] = field(default_factory=dict)
    hidden: dict[int, list[bool]] = field(default_factory=dict)


class HandleMachine(CountedMachine):
    """Tables of inferlets of two users, which choose the same numbers for different pages."""

    def __init__(self) -> None:
        super().__init__()
        self.quotas = Quotas(
            SharedLimits(pages=MAX_OF_SERVER), SharedLimits(pages=MAX_OF_USER)
        )
        self.inferlets = [self.launch(owner) for owner in OWNERS]
        self.next_value = 100

    def launch(self, owner: str) -> Inferlet:
        share = self.quotas.share_of(owner)
        table = PageTable(max_handles=MAX_HANDLES, page_size=PAGE_SIZE, share=share)
        return Inferlet(owner, share, table)

    def count(self) -> Counter[str]:
        """Return how many handles each user has."""
        counts: Counter[str] = Counter()
        for inferlet in self.inferlets:
            counts[inferlet.owner] += len(inferlet.values)
        return counts

    @rule(who=INFERLET, numbers=st.lists(NUMBER, max_size=3))
    def add(self, who: int, numbers: list[int]) -> None:
        """Add all of these handles, or none."""
        inferlet = self.inferlets[who]
        counts, count = self.count(), len(numbers)
        is_bad = len(set(numbers)) < count or inferlet.values.keys() & set(numbers)
        is_too_many = (
            len(inferlet.values) + count > MAX_HANDLES
            or counts[inferlet.owner] + count > MAX_OF_USER
            or sum(counts.values()) + count > MAX_OF_SERVER
        )
        if is_bad or is_too_many:
            with pytest.raises(BadArgumentError if is_bad else LimitError):
                inferlet.table.check_unused(numbers)
            return
        inferlet.table.check_unused(numbers)
        for number in numbers:
            self.next_value += 1
            inferlet.table.add(number, self.next_value)
            inferlet.values[number] = self.next_value

    @rule(who=INFERLET, count=st.integers(1, 2))
    def add_unused(self, who: int, count: int) -> None:
        unused = [n for n in NUMBERS if n not in self.inferlets[who].values]
        self.add(who, unused[:count])

    @precondition(lambda self: any(inferlet.hidden for inferlet in self.inferlets))
    @rule(who=INFERLET)
    def remove_hidden(self, who: int) -> None:
        for number in list(self.inferlets[who].hidden):
            self.remove(who, number)

    @rule(who=INFERLET, number=NUMBER)
    def remove(self, who: int, number: int) -> None:
        inferlet = self.inferlets[who]
        if number not in inferlet.values:
            with pytest.raises(UnknownHandleError):
                inferlet.table.remove(number)
            return
        assert inferlet.table.remove(number) == inferlet.values.pop(number)
        inferlet.hidden.pop(number, None)

    @rule(who=INFERLET, number=NUMBER)
    def replace(self, who: int, number: int) -> None:
        """Let a handle stand for another page, as a write to a shared one does."""
        inferlet = self.inferlets[who]
        if number in inferlet.values:
            self.next_value += 1
            inferlet.table.replace(number, self.next_value)
            inferlet.values[number] = self.next_value

    @rule(who=INFERLET, number=NUMBER, mask=MASK)
    def hide(self, who: int, number: int, mask: list[bool]) -> None:
        inferlet = self.inferlets[who]
        if number in inferlet.values:
            inferlet.table.hide(number, np.array(mask))
            inferlet.hidden.pop(number, None)
            if any(mask):
                inferlet.hidden[number] = mask

    @rule(who=INFERLET)
    def end(self, who: int) -> None:
        """End an inferlet, and launch another of the same user."""
        inferlet = self.inferlets[who]
        assert inferlet.table.clear() == list(inferlet.values.values())
        self.inferlets[who] = self.launch(inferlet.owner)

    @invariant()
    def every_handle_means_what_its_own_inferlet_has_put_there(self) -> None:
        for inferlet in self.inferlets:
            table = inferlet.table
            assert len(table) == len(inferlet.values)
            assert list(table) == list(inferlet.values)
            assert table.values() == list(inferlet.values.values())
            for number in NUMBERS:
                if number in inferlet.values:
                    assert table.get(number) == inferlet.values[number]
                    assert table.get_all([number]) == [inferlet.values[number]]
                    continue
                for use in (table.get, lambda n, table=table: table.get_all([n])):
                    with pytest.raises(UnknownHandleError) as caught:
                        use(number)
                    assert caught.value.handle == number

    @invariant()
    def masks_belong_to_handles(self) -> None:
        none = [False] * PAGE_SIZE
        for inferlet in self.inferlets:
            shown = inferlet.table.hidden_slots(list(inferlet.values))
            expected = [
                slot
                for number in inferlet.values
                for slot in inferlet.hidden.get(number, none)
            ]
            assert (shown is None) == (not inferlet.hidden)
            assert shown is None or shown.tolist() == expected
            assert inferlet.table.hidden.keys() == inferlet.hidden.keys()

    @invariant()
    def quotas_count_what_there_is(self) -> None:
        counts = self.count()
        assert self.quotas.server.used["pages"] == sum(counts.values())
        for owner, count in counts.items():
            quota = self.quotas.users.get(owner)
            assert (0 if quota is None else quota.used["pages"]) == count
        for inferlet in self.inferlets:
            of_user = MAX_OF_USER - counts[inferlet.owner]
            of_server = MAX_OF_SERVER - sum(counts.values())
            assert inferlet.share.room("pages") == min(of_user, of_server)

    def teardown(self) -> None:
        for inferlet in self.inferlets:
            inferlet.table.clear()
        assert self.quotas.server.is_idle
        assert all(quota.is_idle for quota in self.quotas.users.values())


TestHandles = HandleMachine.TestCase
TestHandles.settings = settings(max_examples=settings().max_examples // 2)
