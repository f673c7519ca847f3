"""Whole guests, their children, topics, keys and clients, in a random order that a seed repeats."""

from __future__ import annotations

import os
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING

import pytest

from pie_trio.application.host.topics import Subscriptions
from tests.chaos import guest_seeds
from tests.chaos.events import Event
from tests.chaos.guest_seeds import (
    EVENTS_OF_SEED,
    GUEST_PART,
    check_guest_seed,
    make_guest_events,
)
from tests.chaos.guest_simulation import PROGRAMS, simulate_guests
from tests.chaos.world import GuestSetting

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.guest_simulation import Outcome
    from tests.chaos.world import Language

NUM_EVENTS = int(os.environ.get("PIE_CHAOS_EVENTS", "5000")) // GUEST_PART
FIRST_SEED = int(os.environ.get("PIE_CHAOS_SEED", "0"))
SEEDS = range(FIRST_SEED, FIRST_SEED + max(1, NUM_EVENTS // EVENTS_OF_SEED))


@pytest.fixture(scope="module")
def outcome_of(chaos_language: Language) -> Callable[[int], Outcome]:
    """Simulates a seed, once."""
    return cache(lambda seed: check_guest_seed(seed, EVENTS_OF_SEED, chaos_language))


@pytest.mark.parametrize("seed", SEEDS)
def test_whole_guests_leave_nothing_behind_and_do_no_harm(
    seed: int, outcome_of: Callable[[int], Outcome]
) -> None:
    counts = outcome_of(seed).counts
    assert counts["instances"] > 10
    assert counts["tokens compared"] > 10


def test_everything_that_is_simulated_happens(
    outcome_of: Callable[[int], Outcome],
) -> None:
    counts = sum((outcome_of(seed).counts for seed in range(3)), Counter())
    wanted = ("launched", "of-child", "imported", "relayed", "written", "heard-of")
    assert not [
        kind for kind in (*wanted, "wrote", "shared", "keys") if not counts[kind]
    ]


def test_a_seed_is_the_same_to_the_last_message(chaos_language: Language) -> None:
    setting, events = make_guest_events(1, 60)
    first, second = (
        simulate_guests(setting, events, chaos_language, seed=1) for _ in range(2)
    )
    assert len(first.history) > 20
    assert first.history == second.history
    assert make_guest_events(1, 60) != make_guest_events(2, 60)


def test_what_is_left_behind_is_found_and_told_with_the_way_to_see_it_again(
    chaos_language: Language, monkeypatch: pytest.MonkeyPatch
) -> None:
    listening = PROGRAMS.index("listening")
    needed = [Event("launch", listening, 1), Event("pass", 0, 1), Event("kill")]
    noise = [Event("say"), Event("pass", 0, 4), Event("end-input")]

    def make_events(_seed: int, _count: int) -> tuple[GuestSetting, list[Event]]:
        return GuestSetting(), [*needed, *noise]

    monkeypatch.setattr(guest_seeds, "make_guest_events", make_events)
    assert check_guest_seed(7, 6, chaos_language).counts["listening cancelled"] == 1

    monkeypatch.setattr(Subscriptions, "close", Subscriptions.clear)
    with pytest.raises(
        AssertionError, match="a topic still has subscribers"
    ) as failure:
        check_guest_seed(7, 6, chaos_language)
    text = str(failure.value)
    assert "PIE_CHAOS_SEED=7 PIE_CHAOS_EVENTS=1600 python -m pytest" in text
    shown = [line for line in text.splitlines() if "Event(kind" in line]
    assert "'launch'" in shown[0]
    assert len(shown) <= len(needed), text
