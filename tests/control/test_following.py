from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pie_trio.config import ControlConfig
from pie_trio.control import following
from pie_trio.control.following import ForwardTail
from pie_trio.control.forwards import ForwardPlan, GuestForward
from pie_trio.control.masks import MAX_MASK_ENTRIES
from pie_trio.engine_api import OutputSpec, SamplerSpec
from pie_trio.errors import InferletError
from pie_trio.inference.fake import FakeEngine
from tests.control.test_forwards import NUM_PAGES, PAGE_SIZE, World, wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

INFO = FakeEngine(num_pages=NUM_PAGES, page_size=PAGE_SIZE).info
GREEDY = SamplerSpec(0.0, 0, 1.0, 0.0, 0)
HANDLES = [10, 11, 12]


def last_row(num_tokens: int) -> tuple[OutputSpec, ...]:
    return (OutputSpec(np.array([num_tokens - 1], np.int32), GREEDY, 3),)


class Walker:
    """A context that goes on, described in full each time or by its tail."""

    def __init__(self, *, follows: bool) -> None:
        self.world = World()
        self.world.allocate(*HANDLES)
        self.handles = HANDLES[:2]
        self.num_slots = 3
        first = wanted(3, pages=self.handles)
        first.outputs = last_row(3)
        plan = self.world.plan(first)
        self.tail: ForwardTail | None = None
        if follows:
            self.tail = ForwardTail.of(first, plan, self.world.table)
            assert self.tail is not None

    def go_on(self, num_tokens: int, new_handles: Sequence[int]) -> ForwardPlan:
        world, tokens = self.world, np.full(num_tokens, 7, np.int32)
        if self.tail is not None:
            plan = self.tail.plan_next(
                tokens,
                new_handles,
                world.table,
                world.pool,
                INFO,
                ControlConfig(),
                max_mask_entries=MAX_MASK_ENTRIES,
            )
        else:
            plan = world.plan(
                GuestForward(
                    tokens,
                    np.arange(
                        self.num_slots, self.num_slots + num_tokens, dtype=np.int32
                    ),
                    [*self.handles, *new_handles],
                    self.num_slots,
                    outputs=last_row(num_tokens),
                )
            )
        self.num_slots += num_tokens
        self.handles = [*self.handles, *new_handles]
        return plan

    # ---- what a program may do in between ---------------------------------------------

    def fork(self, handle: int) -> None:
        self.world.fork(handle, handle + 100)

    def drop(self, handle: int) -> None:
        self.world.pool.release(self.world.table.remove(handle))

    def replace(self, handle: int) -> None:
        self.drop(handle)
        self.world.allocate(handle)

    def hide(self, handle: int) -> None:
        hidden = np.zeros(PAGE_SIZE, np.bool_)
        hidden[0] = True
        self.world.table.hide(handle, hidden)

    def overwrite(self, handle: int) -> None:
        self.world.plan(wanted(2, pages=[handle]), positions=np.array([50, 51]))


def described(act: Callable[[], Any]) -> Any:
    """Return what came of it, for a comparison."""
    try:
        plan = act()
    except (InferletError, AssertionError) as error:
        return type(error), str(error)
    if plan is None:
        return None
    request = plan.request
    output = request.outputs[0]
    return (
        request.token_ids.tolist(),
        request.positions.tolist(),
        request.page_ids.tolist(),
        request.kv_len,
        None if request.mask is None else request.mask.tolist(),
        output.rows.tolist(),
        output.sampler,
        output.top_k,
        plan.pages.tolist(),
        list(plan.writes),
        plan.copies,
    )


MEANWHILE = st.tuples(
    st.sampled_from(["fork", "drop", "replace", "hide", "overwrite"]),
    st.sampled_from([*HANDLES, 110]),
)
STEP = st.tuples(
    st.just("go_on"), st.sampled_from([1, 1, 1, 3]), st.sampled_from([(), (), (12,)])
)
ACTIONS = st.tuples(st.lists(MEANWHILE, max_size=2), STEP)


@settings(max_examples=300)
@given(st.lists(ACTIONS, min_size=3, max_size=6))
def test_going_on_is_the_same_forward_as_the_one_that_is_described_in_full(
    rounds: list[tuple[list[tuple[Any, ...]], tuple[Any, ...]]],
) -> None:
    walkers = [Walker(follows=True), Walker(follows=False)]
    actions = [action for meanwhile, step in rounds for action in (*meanwhile, step)]
    for name, *arguments in actions:
        found = [
            described(partial(getattr(walker, name), *arguments)) for walker in walkers
        ]
        assert found[0] == found[1]
        assert walkers[0].world.state() == walkers[1].world.state()


def test_tokens_of_one_page_are_not_looked_at_in_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    walker = Walker(follows=True)
    walker.go_on(PAGE_SIZE, ())  # into the second page
    monkeypatch.delattr(following, "plan_forward")
    walker.go_on(1, ())
    with pytest.raises(NameError):
        walker.go_on(1, (12,))


def test_a_forward_that_returns_other_tokens_cannot_be_followed() -> None:
    world = World()
    world.allocate(10)
    forward = wanted(3, pages=[10])
    for outputs in (
        (),
        (OutputSpec(np.array([0], np.int32), GREEDY),),
        (OutputSpec(np.array([0, 2], np.int32), GREEDY),),
        last_row(3) * 2,
    ):
        forward.outputs = outputs
        assert ForwardTail.of(forward, world.plan(forward), world.table) is None


def test_what_another_forward_has_copied_is_gone_on_with_in_the_copy() -> None:
    """Not in the page that only the fork holds any more."""
    found = []
    for follows in (True, False):
        walker = Walker(follows=follows)
        walker.fork(10)
        # Another context of the program writes slot 3 of the same handle, which moves it.
        walker.world.plan(wanted(1, pages=[10], start=3))
        found.append(described(partial(walker.go_on, 1, ())))
        found.append(walker.world.state())
    assert found[:2] == found[2:]


def test_a_slot_that_another_follower_has_overwritten_is_looked_at_again() -> None:
    found = []
    for follows in (True, False):
        walker = Walker(follows=follows)
        world = walker.world
        # The pages of the other context are 12 and then 10, so that its second page is the
        # first one here; what it writes there is as old as this context, and then younger.
        other = wanted(4, pages=[12, 10])
        other.positions, other.outputs = np.arange(2, 6, dtype=np.int32), last_row(4)
        tail = ForwardTail.of(other, world.plan(other), world.table)
        assert tail is not None
        overwrite = partial(
            tail.plan_next,
            np.array([7], np.int32),
            (),
            world.table,
            world.pool,
            INFO,
            ControlConfig(),
            max_mask_entries=MAX_MASK_ENTRIES,
        )
        overwrite()
        for _ in range(4):
            walker.go_on(1, ())
        overwrite()
        overwrite()
        found.append(described(partial(walker.go_on, 1, ())))
    assert found[0] == found[1]
    assert found[0][4] is not None, "it sees less than all slots"
