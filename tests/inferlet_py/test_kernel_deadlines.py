"""The heap of deadlines against a plain dict."""

from __future__ import annotations

import math

import hypothesis.strategies as st
from hypothesis import given

from inferlet_py._deadlines import Deadlines


class Timer:
    """Notes that it has expired."""

    def __init__(self, name: int, expired: list[int]) -> None:
        self._name = name
        self._expired = expired

    def cancel(self) -> None:
        self._expired.append(self._name)


changes = st.tuples(st.integers(0, 4), st.sampled_from([1.0, 2.0, 3.0, math.inf]))
moments = st.sampled_from([0.0, 1.0, 2.0, 3.0])


@given(st.lists(st.tuples(st.lists(changes), moments)))
def test_each_item_expires_once_at_the_deadline_it_was_given_last(
    rounds: list[tuple[list[tuple[int, float]], float]],
) -> None:
    expired: list[int] = []
    timers = [Timer(name, expired) for name in range(5)]
    deadlines = Deadlines()
    deadline_by_name: dict[int, float] = {}

    for puts, now in rounds:
        for name, deadline in puts:
            deadlines.put(timers[name], deadline)
            deadline_by_name.pop(name, None)
            if deadline != math.inf:
                deadline_by_name[name] = deadline
        assert len(deadlines) == len(deadline_by_name)
        assert deadlines.nearest() == min(deadline_by_name.values(), default=None)

        # A dict keeps the order of insertion, and sorting that of equal deadlines.
        due = sorted(deadline_by_name, key=deadline_by_name.__getitem__)
        due = [name for name in due if deadline_by_name[name] <= now]
        deadlines.expire(now)
        assert expired == due
        for name in due:
            del deadline_by_name[name]
        expired.clear()


def test_a_removed_deadline_that_comes_up_first_does_nothing() -> None:
    expired: list[int] = []
    timers = [Timer(name, expired) for name in range(2)]
    deadlines = Deadlines()
    deadlines.put(timers[0], 1)
    deadlines.put(timers[1], 2)
    deadlines.put(timers[0], math.inf)

    deadlines.expire(2)

    assert expired == [1]
