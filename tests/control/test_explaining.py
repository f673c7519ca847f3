"""Why a batch had its size, in words, on records made by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.control.explaining import Reason, explain_step, main_reason, summarize
from pie_trio.control.trace import StepRecord

NOTHING_ELSE = StepRecord(
    number=7,
    kind="FORWARD",
    size=3,
    num_tokens=5,
    gathering_since=10.0,
    chosen_at=10.0015,
    finished_at=10.004,
    num_ready=3,
    late=(),
    num_other_kind=0,
    num_over_budget=0,
    num_without_pages=0,
    num_blocked=0,
    num_free_pages=9,
    policy="rendezvous",
)


def step(**changes: Any) -> StepRecord:
    return NOTHING_ELSE._replace(**changes)


def test_a_step_is_told_with_its_size_its_time_and_its_policy() -> None:
    assert explain_step(NOTHING_ELSE) == (
        "Step 7 ran 3 of 3 ready commands, a batch of kind forward (5 new tokens), in "
        "2.5 ms. Commands had gathered for 1.5 ms under the policy rendezvous. There was "
        "nothing else to run."
    )


@pytest.mark.parametrize(
    ("changes", "reason", "text"),
    [
        ({}, Reason.ALL, "There was nothing else to run."),
        (
            {"late": ("a-1",)},
            Reason.LATE,
            "1 inferlet was about to submit and came too late: a-1.",
        ),
        (
            {"late": ("a", "b", "c", "d", "e")},
            Reason.LATE,
            "5 inferlets were about to submit and came too late: a, b, c and 2 more.",
        ),
        (
            {"num_other_kind": 2},
            Reason.OTHER_KIND,
            "2 ready commands were of another kind, which a batch does not mix.",
        ),
        (
            {"num_over_budget": 1},
            Reason.LIMITS,
            "1 ready command was beyond the limits of a batch.",
        ),
        (
            {"num_without_pages": 4},
            Reason.PAGES,
            "4 ready commands were without enough free pages.",
        ),
        (
            {"num_blocked": 1},
            Reason.BLOCKED,
            "1 command was not ready, after others on the same pages.",
        ),
    ],
)
def test_what_kept_a_batch_from_being_larger_is_named(
    changes: dict[str, Any], reason: Reason, text: str
) -> None:
    found = step(**changes)
    assert main_reason(found) is reason
    assert text in explain_step(found)


def test_the_main_reason_is_what_kept_the_most_out() -> None:
    found = step(num_blocked=3, num_over_budget=2, late=("a", "b"), num_other_kind=1)
    assert main_reason(found) is Reason.BLOCKED
    assert main_reason(found._replace(num_over_budget=3)) is Reason.LIMITS
    text = explain_step(found)
    for part in ("3 commands", "2 ready commands", "a, b", "another kind"):
        assert part in text
    assert "nothing else" not in text


def test_only_a_forward_has_new_tokens() -> None:
    text = explain_step(step(kind="COPY", num_tokens=3))
    assert "of kind copy, in" in text
    assert summarize([step(kind="COPY", num_tokens=3)]).num_tokens == 0


def test_many_steps_are_summed_up() -> None:
    sizes = [1, 1, 2, 3, 4, 5, 9]
    steps = [step(size=size, num_tokens=size) for size in sizes[:-1]]
    steps.append(step(size=9, num_tokens=9, num_over_budget=1))
    found = summarize(steps)
    assert found.sizes == [(1, 1, 2), (2, 2, 1), (3, 4, 2), (5, 8, 1), (9, 16, 1)]
    assert (found.num_steps, found.num_commands, found.num_tokens) == (7, 25, 25)
    assert (found.median_size, found.largest_size) == (3, 9)
    assert found.reasons == [(Reason.ALL, 6), (Reason.LIMITS, 1)]
    assert found.device_seconds == pytest.approx(7 * 0.0025)
    assert found.gathering_seconds == pytest.approx(7 * 0.0015)
    assert found.text() == (
        "7 steps ran 25 commands with 25 new tokens: 3 a step in the median, 9 at most. "
        "What limited most batches (6 of 7 steps): there was nothing else."
    )


def test_no_step_at_all_is_said_too() -> None:
    found = summarize([])
    assert found.text() == "The device has not made a step."
    assert (found.median_size, found.largest_size, found.sizes) == (0, 0, [])


@given(st.lists(st.integers(1, 300), max_size=50))
def test_every_step_is_in_the_one_class_of_its_size(sizes: list[int]) -> None:
    found = summarize([step(size=size) for size in sizes])
    counts = {
        (first, last): sum(first <= size <= last for size in sizes)
        for first, last, _ in found.sizes
    }
    assert counts == {(first, last): count for first, last, count in found.sizes}
    assert sum(counts.values()) == len(sizes)
