from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.control.commands import (
    Command,
    CommandOrder,
    Kind,
    embed_key,
    is_cut_causally,
)
from pie_trio.control.pages import PagePool
from pie_trio.control.tenants import Tenant
from pie_trio.engine_api import (
    NO_SLOT,
    ForwardRequest,
    OutputResult,
    OutputSpec,
    ProjectRequest,
    SamplerSpec,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUM_KEYS = 4
KEYS = st.frozensets(st.integers(-2, NUM_KEYS - 3), max_size=3)
"""Pages 0 and 1, and the embed slots 0 and 1 as -1 and -2."""


def make_command(
    reads: frozenset[int] = frozenset(),
    writes: frozenset[int] = frozenset(),
    tenant: Tenant | None = None,
) -> Command:
    used = reads | writes
    return Command(
        Kind.FORWARD,
        tenant or Tenant("a", 0),
        pages=np.array(sorted(key for key in used if key >= 0), np.int32),
        writes=writes,
        on_done=lambda _: None,
        submitted_at=0.0,
        embeds=tuple(-1 - key for key in used if key < 0),
    )


def make_order() -> CommandOrder:
    pool = PagePool(num_pages=4, page_size=2)
    for _ in range(4):
        pool.allocate()
    return CommandOrder(pool)


def conflict(first: Command, second: Command) -> bool:
    return bool(first.writes & second.uses or second.writes & first.uses)


@dataclass
class Schedule:
    """Adds and finishes commands, and knows by comparing all pairs which are ready."""

    order: CommandOrder
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
        # A new command of one of two tenants, or finish one.
        st.tuples(KEYS, KEYS, st.integers(0, 1)) | st.integers(0, 99),
        max_size=30,
    ),
    st.lists(st.integers(0, 99), min_size=30, max_size=30),
)
def test_a_command_is_ready_once_all_earlier_ones_that_it_conflicts_with_are_done(
    events: list[tuple[frozenset[int], frozenset[int], int] | int], rest: list[int]
) -> None:
    schedule = Schedule(make_order(), [], [], [])
    tenants = [Tenant(name, 0) for name in "ab"]
    commands: list[Command] = []
    for event in events:
        if not isinstance(event, int):
            reads, writes, tenant = event
            if tenant:  # embeds are never another's
                reads = frozenset(key for key in reads if key >= 0)
                writes = frozenset(key for key in writes if key >= 0)
            commands.append(make_command(reads, writes, tenants[tenant]))
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
    order = make_order()
    readers = [make_command(reads=frozenset({1})) for _ in range(3)]
    for reader in readers:
        order.add(reader)
    assert [reader.num_blockers for reader in readers] == [0, 0, 0]


def test_a_writer_waits_for_all_readers() -> None:
    order = make_order()
    readers = [make_command(reads=frozenset({1})) for _ in range(2)]
    writer = make_command(writes=frozenset({1}))
    for command in (*readers, writer):
        order.add(command)
    assert order.finish(readers[1]) == []
    assert order.finish(readers[0]) == [writer]


def test_embeds_are_told_apart_from_pages() -> None:
    order = make_order()
    first = make_command(writes=frozenset({embed_key(1)}))
    others = [make_command(frozenset({1})), make_command(frozenset({embed_key(0)}))]
    reader = make_command(frozenset({embed_key(1)}))
    for command in (first, *others, reader):
        order.add(command)
    assert [c.num_blockers for c in (*others, reader)] == [0, 0, 1]


def test_a_writer_waits_for_a_reader_of_another_tenant() -> None:
    """It shared the page, and gave its handle back while its forward was in flight."""
    order = make_order()
    reader = make_command(frozenset({1}), tenant=Tenant("a", 0))
    writer = make_command(frozenset(), frozenset({1}), tenant=Tenant("b", 1))
    for command in (reader, writer):
        order.add(command)
    assert writer.num_blockers == 1
    assert order.finish(reader) == [writer]


def test_what_reads_the_embed_that_it_writes_reads_it() -> None:
    command = make_command(writes=frozenset({embed_key(3)}))
    slots = np.array([3, NO_SLOT], np.int32)
    zeros = np.zeros(2, np.int32)
    command.forward = ForwardRequest(zeros, zeros, zeros, 2, input_slots=slots)
    assert command.read_embeds == [3]
    assert command.written_embeds == [3]


def test_a_projection_reads_its_embeds() -> None:
    command = make_command(frozenset({embed_key(1), embed_key(0)}))
    slots = np.array([1, 0, 1], np.int32)
    command.project = ProjectRequest(slots, slots, ())
    assert command.read_embeds == [1, 0, 1]
    assert command.written_embeds == []


MASK = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]], np.bool_)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [(None, True), (MASK, True), (np.ones((3, 4), np.bool_), False)],
    ids=["none", "causal", "sees later ones"],
)
def test_a_forward_is_cut_where_nobody_sees_what_comes_later(
    mask: NDArray[np.bool_] | None, expected: bool
) -> None:
    assert is_cut_causally(mask, 2, 3) == expected


def result_of(rows: NDArray[np.int32]) -> OutputResult:
    """Return tokens that are the numbers of the rows, and a distribution of two."""
    none = np.empty(0, np.float32)
    top = np.stack([rows, rows + 1], axis=1)
    probs = top.astype(np.float32)
    return OutputResult(rows, top, probs, probs[:, 0], none, none, none)


@given(st.data(), st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_chunks_return_what_the_whole_would_have_returned(
    data: st.DataObject, sizes: list[int]
) -> None:
    total = sum(sizes)
    rows = st.lists(st.integers(0, total - 1), unique=True).map(sorted)
    specs = tuple(
        OutputSpec(
            np.array(some, np.int32),
            SamplerSpec(),
            store=np.array(some, np.int32) + 100,
        )
        for some in data.draw(st.lists(rows, max_size=3))
    )
    pool = PagePool(num_pages=9, page_size=3)
    pages = np.array([pool.allocate() for _ in range(9)], np.int32)
    pool.bind(pages)
    tokens = np.arange(total, dtype=np.int32)
    command = make_command()
    command.forward = ForwardRequest(tokens, tokens + 7, pages, 5 + total, None, specs)
    done = 0
    last: tuple[OutputResult, ...] = ()
    for number, size in enumerate(sizes):
        part = command.cut(size, pool)
        assert part.token_ids.tolist() == list(range(done, done + size))
        assert part.positions.tolist() == list(range(done + 7, done + size + 7))
        assert part.kv_len == 5 + done + size
        assert len(part.page_ids) >= -(-part.kv_len // 3)
        for spec in part.outputs:
            assert spec.store is not None
            assert spec.store.tolist() == (spec.rows + done + 100).tolist()
        last = tuple(result_of(spec.rows + done) for spec in part.outputs)
        done += size
        assert command.add_part(last, size) == (number == len(sizes) - 1)
    found = command.outcome(last)
    assert [r.token_ids.tolist() for r in found] == [s.rows.tolist() for s in specs]
    for output in found:
        expected = result_of(output.token_ids)
        np.testing.assert_array_equal(output.top_ids, expected.top_ids)
        np.testing.assert_array_equal(output.logprobs, expected.logprobs)
