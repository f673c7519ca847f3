from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from pie_trio.config import ControlConfig
from pie_trio.control.forwards import ForwardPlan, GuestForward, plan_forward
from pie_trio.control.page_table import PageTable
from pie_trio.control.pages import PagePool
from pie_trio.engine_api import OutputSpec, PageCopy, SamplerSpec
from pie_trio.errors import (
    BadArgumentError,
    InferletError,
    LimitError,
    OutOfPagesError,
    UnknownHandleError,
    UnsupportedError,
)
from pie_trio.inference.fake import FakeEngine

NUM_PAGES, PAGE_SIZE = 6, 4


def wanted(num_tokens: int, *, pages: list[int], start: int = 0) -> GuestForward:
    """Return a forward of zeros that continues the positions."""
    return GuestForward(
        token_ids=np.zeros(num_tokens, np.int32),
        positions=np.arange(start, start + num_tokens, dtype=np.int32),
        pages=pages,
        start=start,
    )


@dataclass
class World:
    """An inferlet with pages 10, 11, 12, ... in a pool of six."""

    config: ControlConfig = field(default_factory=ControlConfig)
    pool: PagePool = field(
        default_factory=lambda: PagePool(num_pages=NUM_PAGES, page_size=PAGE_SIZE)
    )
    table: PageTable = field(
        default_factory=lambda: PageTable(max_handles=99, page_size=PAGE_SIZE)
    )

    def allocate(self, *handles: int) -> list[int]:
        pages = [self.pool.allocate() for _ in handles]
        for handle, page in zip(handles, pages, strict=True):
            self.table.add(handle, page)
        return pages

    def fork(self, source: int, target: int) -> None:
        page = self.table.get(source)
        self.pool.share(page)
        self.table.add(target, page)

    def plan(self, forward: GuestForward, **changes: Any) -> ForwardPlan:
        info = FakeEngine(num_pages=NUM_PAGES, page_size=PAGE_SIZE).info
        return plan_forward(
            replace(forward, **changes), self.table, self.pool, info, self.config
        )

    def state(self) -> Any:
        self.pool.check()
        handles = {handle: self.table.get(handle) for handle in self.table}
        owners = [self.pool.num_owners(page) for page in handles.values()]
        return owners, self.pool.positions.tolist(), handles, self.pool.num_virtual


@pytest.fixture
def world() -> World:
    return World()


def test_a_forward_writes_the_pages_of_its_tokens_and_reads_those_before(
    world: World,
) -> None:
    pages = world.allocate(10, 11, 12, 13)
    world.plan(wanted(6, pages=[10, 11]))
    plan = world.plan(wanted(5, pages=[10, 11, 12, 13], start=6))
    assert plan.request.page_ids.tolist() == pages[:3], "the last one is not needed"
    assert plan.request.page_ids.dtype == np.intp
    assert plan.request.kv_len == 11
    assert plan.request.mask is None
    assert plan.writes == pages[1:3]
    assert plan.pages.tolist() == pages[:3]
    assert plan.copies == ()
    written = world.pool.positions[pages].reshape(-1)
    assert written.tolist() == [*range(11), *[-1] * 5]


def test_a_shared_page_that_is_written_is_copied_under_its_handle(
    world: World,
) -> None:
    first, second = world.allocate(10, 11)
    world.plan(wanted(6, pages=[10, 11]))
    world.fork(10, 20)
    world.fork(11, 21)
    plan = world.plan(wanted(1, pages=[20, 21], start=6))
    copy = world.table.get(21)
    assert copy not in (first, second)
    assert plan.copies == (PageCopy(second, copy, 0, 0, PAGE_SIZE),)
    assert (world.table.get(20), world.table.get(11)) == (first, second)
    assert plan.pages.tolist() == sorted({first, second, copy})
    assert plan.writes == [copy]
    assert world.pool.positions[[second, copy]].tolist() == [
        [4, 5, -1, -1],
        [4, 5, 6, -1],
    ]
    again = world.plan(wanted(1, pages=[20, 21], start=7))
    assert again.copies == (), "it is shared no more"


def test_a_page_that_stands_in_two_places_is_copied_for_one_of_them(
    world: World,
) -> None:
    (page,) = world.allocate(10)
    world.plan(wanted(1, pages=[10]))
    world.fork(10, 11)
    plan = world.plan(wanted(8, pages=[10, 11]))
    assert [copy.source for copy in plan.copies] == [page]
    assert world.table.get(10) != world.table.get(11)
    world.pool.check()


def test_a_shared_page_that_nobody_wrote_is_not_copied(world: World) -> None:
    (page,) = world.allocate(10)
    world.fork(10, 20)
    plan = world.plan(wanted(1, pages=[20]))
    assert plan.copies == ()
    assert (world.table.get(10), world.pool.num_owners(page)) == (page, 1)
    assert world.table.get(20) != page


def test_a_page_that_is_only_read_is_not_copied(world: World) -> None:
    world.allocate(10, 11)
    world.plan(wanted(4, pages=[10]))
    world.fork(10, 20)
    plan = world.plan(wanted(2, pages=[20, 11], start=4))
    assert plan.copies == ()


def test_a_gap_in_the_slots_is_hidden(world: World) -> None:
    world.allocate(10, 11)
    world.plan(wanted(2, pages=[10]))
    plan = world.plan(wanted(1, pages=[10, 11], start=4))
    assert plan.request.mask is not None
    assert plan.request.mask.tolist() == [[True, True, False, False, True]]


def test_later_positions_are_hidden(world: World) -> None:
    world.allocate(10)
    positions = np.array([5, 1], np.int32)
    plan = world.plan(wanted(2, pages=[10]), positions=positions)
    assert plan.request.mask is not None
    assert plan.request.mask.tolist() == [[True, True], [False, True]]


def test_a_page_that_is_left_out_is_not_seen(world: World) -> None:
    first, second, third = world.allocate(10, 11, 12)
    world.plan(wanted(8, pages=[10, 11]))
    forward = wanted(1, pages=[11, 12], start=4)
    plan = world.plan(forward, positions=np.array([8], np.int32))
    assert plan.request.page_ids.tolist() == [second, third]
    assert first not in plan.pages
    assert plan.request.mask is None


def test_a_mask_of_the_guest_is_used_as_it_is(world: World) -> None:
    world.allocate(10)
    plan = world.plan(wanted(2, pages=[10]), mask=[[0, 2], [1, 1]])
    assert plan.request.mask is not None
    assert plan.request.mask.tolist() == [[True, True], [False, True]]


def test_what_was_masked_of_a_handle_is_hidden_from_later_tokens(world: World) -> None:
    world.allocate(10, 11)
    world.plan(wanted(4, pages=[10]))
    world.fork(10, 20)
    world.table.hide(10, np.array([False, True, True, False]))
    plan = world.plan(wanted(2, pages=[10, 11], start=4))
    assert plan.request.mask is not None
    assert plan.request.mask.tolist() == [
        [True, False, False, True, True, False],
        [True, False, False, True, True, True],
    ]
    world.allocate(21)
    assert world.plan(wanted(2, pages=[20, 21], start=4)).request.mask is None


def test_a_page_under_two_handles_is_pinned_once(world: World) -> None:
    (page,) = world.allocate(10)
    world.plan(wanted(4, pages=[10]))
    world.fork(10, 20)
    (last,) = world.allocate(11)
    plan = world.plan(wanted(1, pages=[10, 20, 11], start=8))
    assert plan.request.page_ids.tolist() == [page, page, last]
    assert plan.pages.tolist() == sorted({page, last})


def test_planning_takes_no_page_of_the_device(world: World) -> None:
    world.allocate(*range(100, 200))
    for handle in range(100, 200):
        world.plan(wanted(4, pages=[handle]))
    assert world.pool.num_free == NUM_PAGES


def outputs(*rows: int, **fields: Any) -> tuple[OutputSpec, ...]:
    return (OutputSpec(np.array(rows, np.int32), **fields),)


INT_MAX, INT_MIN = 2**31 - 1, -(2**31)
REFUSALS: dict[str, tuple[dict[str, Any], type[InferletError], str]] = {
    "no token": ({"token_ids": []}, BadArgumentError, "at least one token"),
    "token too large": ({"token_ids": [0, 258]}, BadArgumentError, "token 258 is"),
    "token negative": ({"token_ids": [-1, 0]}, BadArgumentError, "token -1 is not"),
    "too many tokens": (
        {"token_ids": [0] * 9, "positions": range(9)},
        LimitError,
        "may have 8 tokens, got 9: split it",
    ),
    "positions missing": (
        {"positions": [6]},
        BadArgumentError,
        "2 tokens, 1 positions",
    ),
    "position negative": (
        {"positions": [6, INT_MIN]},
        BadArgumentError,
        "position -2147483648",
    ),
    "position too large": (
        {"positions": [6, INT_MAX]},
        BadArgumentError,
        "position 2147483647",
    ),
    "output negative": ({"outputs": outputs(-1)}, BadArgumentError, "output -1"),
    "output too large": (
        {"outputs": outputs(2)},
        BadArgumentError,
        "output 2 is not below 2",
    ),
    "outputs too large": (
        {"outputs": outputs(0, 2)},
        BadArgumentError,
        "output 2 is not below 2",
    ),
    "output twice": ({"outputs": outputs(1, 1)}, BadArgumentError, "named once"),
    "outputs in disorder": ({"outputs": outputs(1, 0)}, BadArgumentError, "ascend"),
    "distribution": (
        {"outputs": outputs(0) + outputs(1, top_k=8)},
        LimitError,
        "may have 7 entries, got 8",
    ),
    "adapter": (
        {"adapter": "lora"},
        UnsupportedError,
        "no adapter 'lora': it has none",
    ),
    "unknown page": ({"pages": [10, 99]}, UnknownHandleError, "page 99"),
    "page twice": ({"pages": [10, 10]}, BadArgumentError, "named twice"),
    "too few pages": ({"pages": [10]}, BadArgumentError, "slots 6 to 7 are written"),
    "start too large": ({"start": 2**32 - 1}, BadArgumentError, "allocate and name"),
    "mask rows": (
        {"mask": [[0, 1]], "pages": [10, 13]},
        BadArgumentError,
        "expected 2, got 1",
    ),
    "mask blind": (
        {"mask": [[0, 1], [8]], "pages": [10, 13]},
        BadArgumentError,
        "row 1 .* sees nothing",
    ),
    "mask too long": (
        {"mask": [[0, 1], [0, 9]], "pages": [10, 13]},
        BadArgumentError,
        "row 1 .* is 9 slots long",
    ),
    "mask stale": (
        {"mask": [[0, 1], [0, 8]], "pages": [10, 13]},
        BadArgumentError,
        "the mask shows slot 4, which was never written",
    ),
    "temperature": (
        {"outputs": outputs(0, sampler=SamplerSpec(temperature=-1))},
        BadArgumentError,
        "temperature is 0 or more, got -1",
    ),
    "temperature nan": (
        {"outputs": outputs(0, sampler=SamplerSpec(temperature=float("nan")))},
        BadArgumentError,
        "got nan",
    ),
    "top_p": (
        {"outputs": outputs(0, sampler=SamplerSpec(top_p=0))},
        BadArgumentError,
        "top_p",
    ),
    "min_p": (
        {"outputs": outputs(0, sampler=SamplerSpec(min_p=1.5))},
        BadArgumentError,
        "min_p",
    ),
    "more pages than there are": (
        {"pages": [10, 11, *range(100, 110)], "start": 24},
        OutOfPagesError,
        "need 7 KV pages but only 6 of 6",
    ),
}


@pytest.mark.parametrize(
    ("changes", "error", "message"), REFUSALS.values(), ids=REFUSALS.keys()
)
def test_a_refused_forward_says_why_and_changes_nothing(
    world: World,
    changes: dict[str, Any],
    error: type[InferletError],
    message: str,
) -> None:
    world.config = ControlConfig(max_forward_tokens=8, max_distribution=7)
    world.allocate(10, 11)
    world.plan(wanted(6, pages=[10, 11]))
    world.fork(11, 21)
    world.allocate(13, *range(100, 110))
    arrays = {
        name: np.array(value, np.int32)
        for name, value in changes.items()
        if name in ("token_ids", "positions")
    }
    before = world.state()
    with pytest.raises(error, match=message):
        world.plan(wanted(2, pages=[10, 11], start=6), **{**changes, **arrays})
    assert world.state() == before


def test_a_distribution_is_no_larger_than_the_vocabulary(world: World) -> None:
    """The engine would fail the whole batch."""
    world.config = ControlConfig(max_distribution=10_000)
    world.allocate(10)
    with pytest.raises(LimitError, match="may have 258 entries, got 259"):
        world.plan(wanted(1, pages=[10]), outputs=outputs(0, top_k=259))


def test_a_mask_is_not_made_for_pages_that_are_not_there(world: World) -> None:
    """It would have a row of megabytes for each token."""
    handles = list(range(100, 100 + 2**12))
    world.allocate(*handles)
    rows = [[2**14 - 1, 1]] * 2048
    with pytest.raises(OutOfPagesError):
        world.plan(wanted(2048, pages=handles, start=2**14 - 2048), mask=rows)
