from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.engine_api import MAX_DRY_LENGTH
from pie_trio.inference.processors.history import History, repetition_lengths

TOKENS = st.lists(st.integers(0, 3), max_size=30)


def naive_lengths(tokens: list[int], breakers: set[int]) -> dict[int, int]:
    """Look for every repetition of the last tokens, each length from anew."""
    found: dict[int, int] = {}
    for end in range(1, len(tokens)):
        follower = tokens[end]
        for length in range(1, end + 1):
            suffix = tokens[len(tokens) - length :]
            is_repeated = tokens[end - length : end] == suffix
            if is_repeated and breakers.isdisjoint([*suffix, follower]):
                found[follower] = max(found.get(follower, 0), length)
    return found


@given(TOKENS, st.sets(st.integers(0, 3), max_size=2))
def test_repetitions_are_found_as_by_looking_for_each(
    tokens: list[int], breakers: set[int]
) -> None:
    found = repetition_lengths(np.array(tokens, np.int32), breakers)
    assert found == naive_lengths(tokens, breakers)


def test_a_repetition_of_three_tokens() -> None:
    tokens = np.array([1, 2, 3, 9, 7, 3, 8, 1, 2, 3], np.int32)
    assert repetition_lengths(tokens, set()) == {9: 3, 8: 1}
    assert repetition_lengths(tokens, {2}) == {9: 1, 8: 1}
    assert repetition_lengths(tokens, {9}) == {8: 1}
    assert repetition_lengths(tokens, {3}) == {}


def test_very_long_repetitions_count_as_the_longest_that_is_told_apart() -> None:
    tokens = np.full(4 * MAX_DRY_LENGTH, 5, np.int32)
    assert repetition_lengths(tokens, set()) == {5: MAX_DRY_LENGTH}


@given(
    TOKENS,
    st.integers(0, 5),
    st.lists(st.one_of(st.integers(0, 3), st.just("take back"), st.just("fork"))),
)
def test_counts_are_those_of_the_latest_tokens(
    first: list[int], window: int, changes: list[int | str]
) -> None:
    history, expected = History(first, window=window), list(first)
    for change in changes:
        if isinstance(change, int):
            history.append(change)
            expected.append(change)
        elif change == "fork":
            left, history = history, history.fork()
            left.append(3)  # has nothing to do with the copy
        elif expected:
            count = min(2, len(expected))
            history.take_back(count)
            del expected[-count:]
        latest = expected[-window:] if window else expected
        assert history.latest().tolist() == latest
        assert history.counts == Counter(latest)
        assert len(history) == len(expected)
