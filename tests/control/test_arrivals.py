from __future__ import annotations

import pytest

from pie_trio.control.arrivals import Arrivals
from tests.control.engines import note


def test_nobody_is_expected_at_first_and_strangers_settle_nothing() -> None:
    calls: list[str] = []
    arrivals = Arrivals(note(calls, "settled"))
    arrivals.settle("stranger")
    assert arrivals.num_expected == 0
    assert calls == []


def test_everybody_has_settled_when_the_last_one_has() -> None:
    calls: list[str] = []
    arrivals = Arrivals(note(calls, "settled"), now=lambda: 0.0)
    for name in ("a", "b", "a"):
        arrivals.expect(name)
    assert arrivals.num_expected == 2, "each counts once"
    arrivals.settle("b")
    arrivals.settle("b")
    arrivals.settle("stranger")
    assert calls == []
    arrivals.settle("a")
    assert calls == ["settled"]
    assert arrivals.num_expected == 0


def test_who_is_late_is_expected_again_once_it_has_waited_itself() -> None:
    calls: list[str] = []
    arrivals = Arrivals(note(calls, "settled"), now=lambda: 0.0)
    arrivals.expect("late")
    arrivals.forget()
    assert arrivals.num_expected == 0
    arrivals.settle("late")
    assert calls == [], "nobody waited for it any more"
    arrivals.expect("late")
    assert arrivals.num_expected == 1


def test_the_time_of_a_turn_is_that_from_one_to_the_next() -> None:
    now = 0.0
    arrivals = Arrivals(now=lambda: now)
    for _ in range(200):
        for name in ("a", "b", "c"):
            arrivals.expect(name)
        for name in ("a", "b", "c"):
            now += 0.5
            arrivals.settle(name)
        now += 100.0  # a step, in which nobody has a turn
    assert arrivals.turn_seconds == pytest.approx(0.5)
    arrivals.expect("late")
    arrivals.forget()
    now += 100.0
    arrivals.expect("next")
    now += 0.5
    arrivals.settle("next")
    assert arrivals.turn_seconds == pytest.approx(0.5)
