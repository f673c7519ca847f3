from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.control.choosing import MAX_PASSED, Choice, Limits, choose_batch
from pie_trio.control.commands import NO_PAGES, Command, Kind, Priority
from pie_trio.control.pages import PagePool
from pie_trio.control.tenants import Tenant
from pie_trio.engine_api import ForwardRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

LIMITS = Limits(max_batch=8, max_tokens=128, chunk_tokens=64)
LONG = 100
"""A prefill."""


class Commands:
    """Makes commands, in order, on a pool."""

    def __init__(self, num_pages: int = 4) -> None:
        self.pool = PagePool(num_pages=num_pages, page_size=4)
        self._sequence = 0

    def add(
        self,
        num_tokens: int = 1,
        *,
        kind: Kind = Kind.FORWARD,
        priority: Priority = Priority.NORMAL,
        tenant: Tenant | None = None,
        pages: Sequence[int] = (),
        mask: NDArray[np.bool_] | None = None,
    ) -> Command:
        zeros = np.zeros(num_tokens, np.int32)
        request = ForwardRequest(zeros, zeros, zeros, num_tokens, mask)
        command = Command(
            kind,
            tenant or Tenant("a", 0),
            pages=np.array(pages, np.int32) if pages else NO_PAGES,
            writes=pages,
            on_done=lambda _: None,
            submitted_at=0.0,
            forward=request if kind == Kind.FORWARD else None,
            priority=priority,
        )
        self._sequence += 1
        command.sequence = command.waiting_since = self._sequence
        return command

    def allocate(self, count: int) -> list[int]:
        return [self.pool.allocate() for _ in range(count)]

    def choose(
        self,
        ready: Sequence[Command],
        limits: Limits = LIMITS,
        *,
        num_expected: int = 0,
    ) -> Choice:
        return choose_batch(ready, self.pool, limits, num_expected=num_expected)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.integers(1, 5),
    st.integers(1, 12),
)
def test_a_batch_is_the_oldest_commands_that_fit(
    sizes: list[int], max_batch: int, max_tokens: int
) -> None:
    commands = Commands()
    ready = [commands.add(size) for size in sizes]
    limits = Limits(max_batch, max_tokens, max_tokens)
    choice = commands.choose(ready, limits)
    places = [ready.index(command) for command in choice.commands]
    assert places == list(range(len(places))), "the oldest first, and nobody is passed"
    assert all(0 < count <= sizes[i] for i, count in enumerate(choice.num_tokens))
    assert sum(choice.num_tokens) == min(max_tokens, sum(sizes[:max_batch]))
    assert len(places) + choice.num_over_budget == len(ready)


def test_an_empty_batch_is_no_error() -> None:
    assert Commands().choose([]).commands == []


def test_prefills_are_cut_while_as_many_others_would_wait_for_them() -> None:
    commands = Commands()
    ready = [commands.add(LONG), commands.add(LONG), commands.add(), commands.add(2)]
    choice = commands.choose(ready)
    assert choice.commands == [ready[0], *ready[2:]]
    assert choice.num_tokens == [64, 1, 2]
    assert choice.num_over_budget == 1


def test_alone_a_prefill_takes_the_whole_batch() -> None:
    commands = Commands()
    assert commands.choose([commands.add(LONG)]).num_tokens == [100]
    assert commands.choose([commands.add(999)]).num_tokens == [128]


def test_a_prefill_is_cut_for_who_is_about_to_come() -> None:
    commands = Commands()
    choice = commands.choose([commands.add(LONG)], num_expected=1)
    assert choice.num_tokens == [64]


def test_where_most_wait_for_their_first_token_prefills_take_the_whole_batch() -> None:
    commands = Commands()
    ready = [*(commands.add(60) for _ in range(3)), commands.add(), commands.add(2)]
    choice = commands.choose(ready)
    assert choice.commands == ready
    assert choice.num_tokens == [60, 60, 5, 1, 2]
    # Many prefills of one inferlet are one that waits, and who may be late does not count.
    tenant = Tenant("a", 0)
    of_one = [*(commands.add(60, tenant=tenant) for _ in range(3)), *ready[3:]]
    late = [*(commands.add(60, priority=Priority.LOW) for _ in range(3)), *ready[3:]]
    assert commands.choose(of_one).num_tokens == [1, 2, 60, 4]
    assert commands.choose(late).num_tokens == [1, 2, 60, 4]


def test_many_prefills_take_four_chunks_at_most() -> None:
    commands = Commands()
    ready = [commands.add(999), commands.add(999), commands.add()]
    limits = Limits(max_batch=8, max_tokens=2048, chunk_tokens=64)
    assert commands.choose(ready, limits).num_tokens == [256, 1]


def test_what_is_left_of_a_prefill_is_cut_again() -> None:
    commands = Commands()
    command = commands.add(LONG)
    command.num_run = 50
    assert commands.choose([command, commands.add()]).num_tokens == [50, 1]


@pytest.mark.parametrize(
    ("num_tokens", "others", "expected"),
    [
        (LONG, [], [LONG]),
        (LONG, [30], [30]),
        (LONG, [20], [20, LONG]),
        (200, [], [200]),
        (200, [1], [1]),
    ],
    ids=["alone", "too little room", "room", "more than a batch", "not alone"],
)
def test_a_forward_with_a_mask_that_sees_later_tokens_is_not_cut(
    num_tokens: int, others: list[int], expected: list[int]
) -> None:
    commands = Commands()
    mask = np.ones((num_tokens, num_tokens), np.bool_)
    first = [commands.add(count) for count in others]
    ready = [*first, commands.add(num_tokens, mask=mask)]
    assert commands.choose(ready).num_tokens == expected


def test_high_goes_before_normal_and_that_before_low_inside_a_kind() -> None:
    commands = Commands()
    low, normal, high = (commands.add(priority=p) for p in Priority)
    choice = commands.choose([low, normal, high], Limits(2, 9, 9))
    assert choice.commands == [high, normal]


def test_the_kind_that_has_waited_longest_is_run() -> None:
    commands = Commands()
    project = commands.add(kind=Kind.PROJECT)
    forward = commands.add(priority=Priority.HIGH)
    choice = commands.choose([forward, project])
    assert choice.commands == [project]
    assert choice.num_other_kind == 1
    project.waiting_since = 99
    assert commands.choose([forward, project]).commands == [forward]


def test_another_kind_runs_while_the_oldest_lacks_pages() -> None:
    commands = Commands(num_pages=1)
    forward = commands.add(pages=commands.allocate(2))
    project = commands.add(kind=Kind.PROJECT)
    choice = commands.choose([forward, project])
    assert choice.commands == [project]
    assert (choice.starved, choice.num_missing) == (forward, 1)


def test_two_commands_that_read_the_same_unwritten_page_need_it_once() -> None:
    commands = Commands(num_pages=1)
    (page,) = commands.allocate(1)
    ready = [commands.add(pages=[page]) for _ in range(2)]
    choice = commands.choose(ready)
    assert choice.commands == ready
    assert choice.starved is None


def test_nobody_younger_takes_the_pages_that_an_older_one_waits_for() -> None:
    commands = Commands(num_pages=3)
    old, young = Tenant("old", 1), Tenant("young", 2)
    held = commands.allocate(1)
    commands.pool.bind(np.array(held, np.int32))
    large = commands.add(pages=commands.allocate(3), tenant=old)
    own = commands.add(pages=commands.allocate(1), tenant=old)
    small = commands.add(pages=commands.allocate(1), tenant=young)
    decode = commands.add(pages=held, tenant=young)
    choice = commands.choose([large, own, small, decode])
    assert choice.commands == [decode], "it needs none"
    assert (choice.starved, choice.num_needed, choice.num_missing) == (large, 3, 1)
    assert choice.num_without_pages == 3


def test_the_oldest_inferlet_is_helped_first_whoever_asked_first() -> None:
    commands = Commands(num_pages=1)
    old, young = Tenant("old", 1), Tenant("young", 2)
    first = commands.add(pages=commands.allocate(3), tenant=young)
    second = commands.add(pages=commands.allocate(2), tenant=old)
    choice = commands.choose([first, second])
    assert (choice.starved, choice.num_missing) == (second, 1)
    third = commands.add(pages=commands.allocate(1), tenant=old)
    choice = commands.choose([first, third])
    assert choice.commands == [third], "and takes what it can"


def test_a_suspended_inferlet_waits_for_all_its_pages() -> None:
    commands = Commands(num_pages=4)
    pages = commands.allocate(3)
    tenant = Tenant("a", 1, pages=lambda: pages)
    commands.pool.bind(np.array(pages, np.int32))
    commands.pool.swap_out(pages, np.zeros((3, 8), np.uint8))
    tenant.is_suspended = True
    (new,) = commands.allocate(1)
    command = commands.add(pages=[pages[0], new], tenant=tenant)
    projection = commands.add(kind=Kind.PROJECT, tenant=tenant)
    choice = commands.choose([command, projection])
    assert choice.commands == [projection], "which needs no page"
    assert (choice.starved, choice.num_needed, choice.num_missing) == (command, 4, 0)


def test_who_was_told_to_end_gets_no_help() -> None:
    commands = Commands(num_pages=1)
    tenant = Tenant("a", 1)
    tenant.is_evicted = True
    command = commands.add(pages=commands.allocate(2), tenant=tenant)
    choice = commands.choose([command])
    assert (choice.commands, choice.starved) == ([], None)


@pytest.mark.parametrize("num_tokens", [1, LONG])
def test_whatever_is_skipped_time_and_again_has_its_turn(num_tokens: int) -> None:
    """Others of a higher priority, or that go on for ever, always fill the batch."""
    commands = Commands()
    low = commands.add(num_tokens, priority=Priority.LOW)
    limits = Limits(max_batch=2, max_tokens=8, chunk_tokens=8)
    for _ in range(MAX_PASSED):
        ready = [low, *(commands.add(priority=Priority.HIGH) for _ in range(3))]
        assert low not in commands.choose(ready, limits).commands
    assert commands.choose(ready, limits).commands[0] is low
    assert low not in commands.choose(ready, limits).commands, "once"


def test_a_forward_that_cannot_be_cut_has_its_turn_beside_streams() -> None:
    commands = Commands()
    streams = [commands.add() for _ in range(3)]
    mask = np.ones((LONG, LONG), np.bool_)
    whole = commands.add(LONG, mask=mask)
    limits = Limits(max_batch=8, max_tokens=16, chunk_tokens=16)
    batches = [
        commands.choose([*streams, whole], limits).commands
        for _ in range(MAX_PASSED + 1)
    ]
    assert all(batch == streams for batch in batches[:-1])
    assert batches[-1] == [whole], "alone, for it is longer than a batch"


def test_of_many_that_are_skipped_each_has_its_turn() -> None:
    """Also where those that were skipped too often are more than a batch has room for."""
    commands = Commands()
    limits = Limits(max_batch=2, max_tokens=8, chunk_tokens=8)
    low = commands.add(priority=Priority.LOW)
    others = [commands.add(priority=Priority.HIGH) for _ in range(40)]
    for _ in range(100):
        chosen = commands.choose([low, *others], limits).commands
        if low in chosen:
            break
        # What ran is submitted again, as the next token of somebody.
        others = [o for o in others if o not in chosen]
        others += [commands.add(priority=Priority.HIGH) for _ in chosen]
    else:
        pytest.fail("it never ran")
