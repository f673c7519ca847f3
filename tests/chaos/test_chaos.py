"""Events of every kind, in a random order that a seed repeats; ``nox -s chaos`` has far more."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from pie_trio.control.pages import PagePool
from tests.chaos.events import Event
from tests.chaos.simulation import (
    Setting,
    check_seed,
    failure_of,
    make_events,
    shrink,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

EVENTS_OF_SEED = 500
NUM_EVENTS = int(os.environ.get("PIE_CHAOS_EVENTS", "5000"))
FIRST_SEED = int(os.environ.get("PIE_CHAOS_SEED", "0"))
SEEDS = range(FIRST_SEED, FIRST_SEED + NUM_EVENTS // EVENTS_OF_SEED)


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_nothing_is_lost_and_nobody_is_harmed(seed: int) -> None:
    assert check_seed(seed, EVENTS_OF_SEED)["launched"] > 5


def test_most_of_what_is_begun_comes_out() -> None:
    counts = sum((check_seed(seed, EVENTS_OF_SEED) for seed in range(3)), Counter())
    assert counts["compared"] > 100


def test_a_seed_stands_for_the_same_events() -> None:
    assert make_events(3, 50) == make_events(3, 50)
    assert make_events(3, 50) != make_events(4, 50)


def test_what_goes_wrong_is_shrunk_to_what_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noise = [Event(kind) for kind in ("send", "drain", "tell", "suspend", "receive")]
    begin = [Event("launch"), Event("begin", number=5)]
    time = [Event("pass", number=2)] * 3
    later = [Event("pass", number=4), Event("extend"), *time]
    lost = Event("lose-engine")
    events = [*begin, *time, *noise[:3], *time, lost, *noise[:3], *later, *noise]
    assert failure_of(Setting(), events) is None

    def lose_nothing(_pool: PagePool) -> None: ...

    monkeypatch.setattr(PagePool, "lose_device", lose_nothing)
    failure = failure_of(Setting(), events)
    assert failure is not None
    assert "instead of" in failure, "what is read is not what was written"
    shown: Sequence[Event] = shrink(Setting(), events)
    assert failure_of(Setting(), shown) is not None
    assert "lose-engine" in {event.kind for event in shown}
    assert len(shown) < 10, shown
