"""Where an inferlet runs: a decision on what is known of each replica."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from pie_trio.control.placing import Load, choose_replica

if TYPE_CHECKING:
    from collections.abc import Sequence

STATES = st.sampled_from(["ready", "restarting", "lost"])
LOADS = st.lists(
    st.builds(Load, STATES, st.integers(0, 1 << 20), st.integers(0, 2000)),
    min_size=1,
    max_size=8,
)
READY = st.lists(
    st.builds(Load, st.just("ready"), st.integers(0, 9), st.integers(0, 9)),
    min_size=1,
    max_size=8,
)


def share_of(load: Load) -> Fraction:
    """Return the free pages for each inferlet, exactly."""
    return Fraction(load.num_free, load.num_inferlets + 1)


@given(READY)
def test_nobody_has_more_free_pages_for_each_inferlet(loads: Sequence[Load]) -> None:
    chosen = loads[choose_replica(loads)]
    assert share_of(chosen) == max(map(share_of, loads))


@given(READY)
def test_of_several_it_is_the_one_with_the_fewest_and_then_the_first(
    loads: Sequence[Load],
) -> None:
    number = choose_replica(loads)
    best = [
        (load.num_inferlets, at)
        for at, load in enumerate(loads)
        if share_of(load) == share_of(loads[number])
    ]
    assert min(best) == (loads[number].num_inferlets, number)


@given(LOADS)
def test_one_whose_engine_is_gone_is_taken_only_where_no_other_is_left(
    loads: Sequence[Load],
) -> None:
    states = [load.state for load in loads]
    best = next(one for one in ("ready", "restarting", "lost") if one in states)
    assert states[choose_replica(loads)] == best


@given(LOADS, st.data())
def test_a_replica_that_was_not_chosen_does_not_matter(
    loads: Sequence[Load], data: st.DataObject
) -> None:
    number = choose_replica(loads)
    others = [load for at, load in enumerate(loads) if at != number]
    if others:
        kept = data.draw(st.lists(st.sampled_from(range(len(others))), unique=True))
        left = [load for at, load in enumerate(others) if at in kept]
        place = sum(at in kept for at in range(number))
        assert choose_replica([*left[:place], loads[number], *left[place:]]) == place


@given(st.integers(1, 8), st.integers(0, 100), st.integers(0, 50))
def test_inferlets_that_need_the_same_are_spread_evenly(
    num_replicas: int, num_pages: int, num_inferlets: int
) -> None:
    counts = Counter[int]()
    for _ in range(num_inferlets):
        loads = [Load("ready", num_pages, counts[at]) for at in range(num_replicas)]
        counts[choose_replica(loads)] += 1
    found = [counts[at] for at in range(num_replicas)]
    assert max(found) - min(found) <= 1
    assert found == sorted(found, reverse=True)


def test_where_nothing_is_free_the_fewest_inferlets_decide() -> None:
    loads = [Load("ready", 0, 3), Load("ready", 0, 1), Load("ready", 0, 2)]
    assert choose_replica(loads) == 1
