"""What a seed stands for, and what is told of one that goes wrong."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from tests.chaos.events import (
    Event,
    describe_error,
    describe_failure,
    shrink_events,
)
from tests.chaos.guest_simulation import Outcome, simulate_guests
from tests.chaos.simulation import POLICIES
from tests.chaos.world import GuestSetting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.chaos.world import Language

EVENTS_OF_SEED = 200
GUEST_PART = 8
"""Of eight events that are asked for, one happens to guests: it takes as long."""
WEIGHTS = {
    "launch": 14,
    "launch-detached": 5,
    "launch-unread": 1,
    "attach": 3,
    "read": 8,
    "leave": 2,
    "detach": 2,
    "say": 3,
    "end-input": 1,
    "pass": 40,
    "cancel": 1,
    "kill": 1,
    "fail-step": 0.6,
    "fail-disk": 1.5,
    "lose-engine": 0.3,
}


def make_guest_events(seed: int, count: int) -> tuple[GuestSetting, list[Event]]:
    """Return what a seed stands for."""
    source = random.Random(seed)
    setting = GuestSetting(
        policy=source.choice(POLICIES),
        contention=source.choice(["ladder", "ladder", "fcfs"]),
        num_pages=source.choice([400, 400, 40, 22]),
        swap_bytes=source.choice([0, 1 << 30, 1000]),
        num_warm=source.choice([0, 0, 2]),
        max_unread=source.choice([2, 3, 8]),
    )
    kinds = source.choices([*WEIGHTS], [*WEIGHTS.values()], k=count)
    if source.random() < 0.3:
        kinds.insert(source.randrange(count // 2, count), "drain")
    return setting, [
        Event(kind, source.randrange(100), source.randrange(1 << 20)) for kind in kinds
    ]


def check_guest_seed(seed: int, count: int, language: Language) -> Outcome:
    """Simulate what a seed stands for.

    Raises:
        AssertionError: With what goes wrong, the fewest events found, and how to see it again.
    """
    setting, events = make_guest_events(seed, count)
    try:
        return simulate_guests(setting, events, language, seed=seed)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise

        def failure_of(shorter: Sequence[Event]) -> str | None:
            return describe_failure(
                lambda: simulate_guests(setting, shorter, language, seed=seed)
            )

        shown = shrink_events(
            events, lambda shorter: failure_of(shorter) is not None, max_runs=40
        )
        trace = "\n".join(f"  {event!r}," for event in shown)
        raise AssertionError(
            f"seed {seed} goes wrong with {setting}: {describe_error(error)}\n"
            f"of {len(events)} events it takes these: {failure_of(shown)}\n{trace}\n"
            f"again: PIE_CHAOS_SEED={seed} PIE_CHAOS_EVENTS={EVENTS_OF_SEED * GUEST_PART} "
            "python -m pytest tests/chaos/test_guests.py -k whole"
        ) from error
