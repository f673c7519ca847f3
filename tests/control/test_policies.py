from __future__ import annotations

from dataclasses import replace
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.control.policies import (
    BatchPolicy,
    BatchState,
    make_policy,
    named,
    policy_names,
)
from pie_trio.control.policies.builtin import KOnly, KOrT, Rendezvous, TOnly
from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

STEP_SECONDS = 1.0

Event = tuple[float, str]
Batches = list[tuple[float, int]]


def simulate(policy: BatchPolicy, events: Sequence[Event]) -> Batches:
    """Return when a device that takes a second a step gets batches of which size.

    Args:
        policy: To be tried.
        events: Times, and what happens then: ``submit``, ``expect`` (an inferlet is resumed)
            or ``settle`` (it waits again).
    """
    waiting: list[float] = []  # when they came
    batches: Batches = []
    expected, now, idle_at, gathering_since = 0, 0.0, 0.0, 0.0
    pending = sorted(events, key=lambda event: event[0])
    while pending or waiting:
        while pending and pending[0][0] <= now:
            at, name = pending.pop(0)
            if name == "submit":
                waiting.append(at)
            else:
                expected = max(0, expected + (1 if name == "expect" else -1))
        following = [pending[0][0]] if pending else []
        if now < idle_at or not waiting:
            now = min([idle_at, *following]) if now < idle_at else following[0]
            gathering_since = now
            continue
        state = BatchState(
            now,
            gathering_since,
            len(waiting),
            waiting[0],
            max(gathering_since, waiting[-1]),
            expected,
            STEP_SECONDS,
        )
        seconds = policy.wait_seconds(state)
        if seconds > 1e-9:
            now = min([now + seconds, *following])
            continue
        size = min(len(waiting), policy.max_batch or len(waiting))
        batches.append((round(now, 6), size))
        del waiting[:size]
        idle_at = now + STEP_SECONDS
        expected = 0
    return batches


def submit_at(*times: float) -> list[Event]:
    return [(time, "submit") for time in times]


# Four inferlets are resumed when a step ends at 1.0; they submit one after the other.
COHORT: list[Event] = [
    (0.0, "submit"),
    *[(1.0, "expect")] * 4,
    *submit_at(1.1, 1.15, 1.2, 1.3),
    *[(time, "settle") for time in (1.1, 1.15, 1.2, 1.3)],
]


@pytest.mark.parametrize(
    ("name", "events", "expected"),
    [
        ("adaptive", COHORT, [(0, 1), (1.1, 1), (2.1, 3)]),
        ("rendezvous", COHORT, [(0, 1), (1.3, 4)]),
        ("rendezvous:0.09,0", COHORT, [(0, 1), (1.29, 3), (2.29, 1)]),
        ("rendezvous", submit_at(0, 0.5, 0.6), [(0, 1), (1, 2)]),
        ("eager", submit_at(0, 0, 0), [(0, 1), (1, 1), (2, 1)]),
        ("k:2", submit_at(0, 0.05, 0.3, 0.3, 5), [(0.05, 2), (1.05, 2), (5.1, 1)]),
        ("t:0.25", submit_at(0, 0.2, 0.3, 0.4), [(0.25, 2), (1.25, 2)]),
        ("k_or_t:3,0.25", submit_at(0, 0.1, 0.2, 2), [(0.2, 3), (2.25, 1)]),
        ("k_or_t:3,0.25", submit_at(0, 0.1, 0.3), [(0.25, 2), (1.25, 1)]),
        ("k_or_t:2,0.25", submit_at(0, 0, 0), [(0, 3)]),
    ],
    ids=[
        "adaptive splits a cohort",
        "rendezvous waits for it",
        "but not for long",
        "nor for nobody",
        "eager",
        "k",
        "t",
        "k of k or t",
        "t of k or t",
        "k is not a limit there",
    ],
)
def test_a_policy_makes_these_batches_of_a_recorded_trace(
    name: str, events: Sequence[Event], expected: Batches
) -> None:
    assert simulate(make_policy(name), events) == expected


def test_rendezvous_waits_for_nobody_where_turns_take_longer_than_a_step() -> None:
    """Then two cohorts are faster, which take turns on the device."""
    state = BatchState(1.0, 1.0, 64, 1.0, 1.0, 64, step_seconds=0.02)
    policy = Rendezvous()
    assert policy.wait_seconds(replace(state, turn_seconds=0.0001)) > 0
    assert policy.wait_seconds(replace(state, turn_seconds=0.0003)) == 0
    # The shortest steps cost less than what there is to do about each.
    short = replace(state, step_seconds=0.001, turn_seconds=0.0003)
    assert policy.wait_seconds(short) > 0


POLICIES = st.sampled_from(
    ["rendezvous", "adaptive", "eager", "k:3", "t:0.5", "k_or_t:2,0.5"]
)


@given(POLICIES, st.lists(st.floats(0, 9), max_size=20))
def test_every_command_gets_into_a_batch_in_bounded_time(
    name: str, times: list[float]
) -> None:
    batches = simulate(make_policy(name), submit_at(*times))
    assert sum(size for _, size in batches) == len(times)
    starts = [start for start, _ in batches]
    assert all(b - a >= STEP_SECONDS - 1e-5 for a, b in zip(starts, starts[1:]))  # noqa: B905, RUF007
    if starts:
        assert starts[-1] <= max(times) + len(times) * STEP_SECONDS + 1


def test_arguments_are_read() -> None:
    assert make_policy("rendezvous") == Rendezvous()
    assert make_policy("rendezvous:0.25,0.001") == Rendezvous(0.25, 0.001)
    assert make_policy("k:8") == KOnly(8)
    assert make_policy("t: 0.016") == TOnly(0.016)
    assert make_policy("k_or_t:8, 0.016") == KOrT(8, 0.016)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("magic", "no batching policy 'magic': choose one of rendezvous, adaptive"),
        ("", "no batching policy ''"),
        ("k:0", "a count is 1 or more, got 0"),
        ("k:x", "invalid literal"),
        ("k:1,2", "too many values"),
        ("t:-1", "between 0 and 3600, got -1"),
        ("t:nan", "got nan"),
        ("k_or_t:8", "not enough values"),
        ("adaptive:1", "it takes no arguments"),
        ("rendezvous:1", "for example `k:8`"),
    ],
    ids=str,
)
def test_a_wrong_policy_is_refused_with_what_is_right(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_policy(text)


class Half:
    """A policy of another package."""

    max_batch = 64

    def __init__(self, ready: str = "32") -> None:
        self.ready = int(ready)

    def wait_seconds(self, state: BatchState) -> float:
        return 0.0 if state.num_ready >= self.ready else 1.0


class NoPolicy:
    """Has nothing that a policy has."""


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for packages with entry points."""
    found = [
        EntryPoint(name, f"{__name__}:{kind.__name__}", named.ENTRY_POINTS)
        for name, kind in (("half", Half), ("none", NoPolicy), ("k", NoPolicy))
    ]

    def entry_points(*, group: str, name: str | None = None) -> list[EntryPoint]:
        assert group == "pie_trio.batch_policies"
        return [entry for entry in found if name in (None, entry.name)]

    monkeypatch.setattr(named, "entry_points", entry_points)


@pytest.mark.usefixtures("installed")
def test_a_policy_may_come_from_another_package() -> None:
    policy = make_policy("half:2")
    assert isinstance(policy, Half)
    assert simulate(policy, submit_at(0, 0.5)) == [(0.5, 2)]


@pytest.mark.usefixtures("installed")
def test_one_that_is_no_policy_is_refused_and_names_of_ours_stay_ours() -> None:
    assert policy_names()[-2:] == ["half", "none"]
    assert make_policy("k") == KOnly()
    with pytest.raises(ConfigError, match="has no wait_seconds and max_batch"):
        make_policy("none")
    with pytest.raises(ConfigError, match="half:x"):
        make_policy("half:x")
