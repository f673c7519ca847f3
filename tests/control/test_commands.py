from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.control.commands import Command, PageOrder, choose_batch
from pie_trio.engine_api import ForwardRequest

PAGES = st.frozensets(st.integers(0, 3), max_size=3)


def make_command(
    reads: frozenset[int] = frozenset(),
    writes: frozenset[int] = frozenset(),
    *,
    num_tokens: int = 1,
) -> Command:
    zeros = np.zeros(num_tokens, np.int32)
    request = ForwardRequest(zeros, zeros, np.zeros(1, np.int32), num_tokens)
    return Command(request, (), reads, writes, lambda _: None, submitted_at=0.0)


def conflict(first: Command, second: Command) -> bool:
    return bool(
        first.writes & (second.reads | second.writes) or first.reads & second.writes
    )


@dataclass
class Schedule:
    """Adds and finishes commands, and knows by comparing all pairs which are ready."""

    order: PageOrder
    unfinished: list[Command]
    ready: list[Command]
    finished: list[Command]

    def add(self, command: Command) -> None:
        self.order.add(command)
        self.unfinished.append(command)
        if command.num_blockers == 0:
            self.ready.append(command)

    def finish(self, index: int) -> None:
        command = self.ready.pop(index % len(self.ready))
        self.unfinished.remove(command)
        self.finished.append(command)
        self.ready += self.order.finish(command)

    def check(self) -> None:
        expected = {
            id(command)
            for place, command in enumerate(self.unfinished)
            if not any(conflict(other, command) for other in self.unfinished[:place])
        }
        assert sorted(map(id, self.ready)) == sorted(expected)


@given(
    st.lists(
        st.tuples(PAGES, PAGES) | st.integers(0, 99),  # a new command, or finish one
        max_size=30,
    ),
    st.lists(st.integers(0, 99), min_size=30, max_size=30),
)
def test_a_command_is_ready_once_all_earlier_ones_that_it_conflicts_with_are_done(
    events: list[tuple[frozenset[int], frozenset[int]] | int], rest: list[int]
) -> None:
    schedule = Schedule(PageOrder(), [], [], [])
    commands: list[Command] = []
    for event in events:
        if not isinstance(event, int):
            commands.append(make_command(*event))
            schedule.add(commands[-1])
        elif schedule.ready:
            schedule.finish(event)
        schedule.check()
    for index in rest:
        if schedule.ready:
            schedule.finish(index)
            schedule.check()
    assert len(schedule.order) == 0
    place = {id(command): i for i, command in enumerate(schedule.finished)}
    assert len(place) == len(commands), "nothing is left"
    for i, first in enumerate(commands):
        for second in commands[i + 1 :]:
            if conflict(first, second):
                assert place[id(first)] < place[id(second)]


def test_readers_of_a_page_run_side_by_side() -> None:
    order = PageOrder()
    readers = [make_command(reads=frozenset({1})) for _ in range(3)]
    for reader in readers:
        order.add(reader)
    assert [reader.num_blockers for reader in readers] == [0, 0, 0]


def test_a_writer_waits_for_all_readers() -> None:
    order = PageOrder()
    readers = [make_command(reads=frozenset({1})) for _ in range(2)]
    writer = make_command(writes=frozenset({1}))
    for command in (*readers, writer):
        order.add(command)
    assert order.finish(readers[1]) == []
    assert order.finish(readers[0]) == [writer]


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.integers(1, 5),
    st.integers(1, 12),
)
def test_a_batch_is_the_oldest_commands_that_fit(
    sizes: list[int], max_batch: int, max_tokens: int
) -> None:
    ready = [make_command(num_tokens=size) for size in sizes]
    chosen = choose_batch(ready, max_batch=max_batch, max_tokens=max_tokens)
    places = [ready.index(command) for command in chosen]
    assert places[0] == 0, "the oldest is always taken"
    assert places == sorted(set(places))
    assert len(chosen) <= max_batch
    total = sum(sizes[place] for place in places)
    assert total <= max_tokens or len(chosen) == 1
    if len(chosen) < max_batch:
        left_out = [sizes[i] for i in range(places[-1] + 1, len(sizes))]
        assert all(total + size > max_tokens for size in left_out)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([9, 1], [9]), ([1, 8, 2, 1], [1, 2, 1]), ([4, 4, 4], [4])],
    ids=["larger than all", "skipped", "full"],
)
def test_what_does_not_fit_waits_and_what_is_behind_it_does_not(
    sizes: list[int], expected: list[int]
) -> None:
    ready = [make_command(num_tokens=size) for size in sizes]
    chosen = choose_batch(ready, max_batch=8, max_tokens=4)
    assert [command.num_tokens for command in chosen] == expected


def test_an_empty_batch_is_no_error() -> None:
    assert choose_batch([], max_batch=2, max_tokens=2) == []
