"""Sides take turns, and what came of it in numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.pairing import (
    Estimate,
    describe_point,
    estimate,
    median_ratio,
    show,
    take_turns,
)

if TYPE_CHECKING:
    from benchmarks.pairing import Point, Side


def make_sides(order: list[tuple[str, Point]]) -> dict[str, Side]:
    """Return two sides that note their turns; their figures count them."""

    def make(name: str) -> Side:
        async def side(point: Point) -> dict[str, float]:
            order.append((name, point))
            return {"turn": float(len(order))}

        return side

    return {"a": make("a"), "b": make("b")}


async def test_who_begins_changes_from_round_to_round() -> None:
    order: list[tuple[str, Point]] = []
    await take_turns(make_sides(order), [{"n": 1}], rounds=2, settle=list)
    assert "".join(name for name, _ in order) == "ab" + "ba" + "ab"


async def test_the_first_round_warms_up_and_does_not_count() -> None:
    found = await take_turns(make_sides([]), [{"n": 1}], rounds=2, settle=list)
    samples = {series.side: series.samples["turn"] for series in found}
    assert samples == {"a": [4.0, 5.0], "b": [3.0, 6.0]}
    assert all(len(series.others) == 2 for series in found)


async def test_points_come_one_after_the_other_with_all_sides() -> None:
    order: list[tuple[str, Point]] = []
    points: list[Point] = [{"n": 1}, {"n": 2}]
    found = await take_turns(make_sides(order), points, rounds=1, settle=list)
    assert [point for _, point in order] == [{"n": 1}] * 4 + [{"n": 2}] * 4
    assert [(s.point, s.side) for s in found] == [(p, s) for p in points for s in "ab"]


def test_the_interval_of_equal_samples_has_no_width() -> None:
    assert estimate([3.0] * 5) == Estimate(3.0, 3.0, 3.0)


def test_an_interval_holds_the_median_and_is_the_same_each_time() -> None:
    samples = [1.0, 2.0, 3.0, 4.0, 100.0]
    found = estimate(samples)
    assert found.median == 3.0
    assert 1.0 <= found.low <= 3.0 <= found.high <= 100.0
    assert found.low < found.high
    assert estimate(samples) == found


def test_a_ratio_is_that_of_each_round_and_not_of_medians() -> None:
    ours, theirs = [2.0, 20.0, 9.0], [1.0, 10.0, 100.0]
    assert median_ratio(ours, theirs).median == 2.0, "of medians it would be 0.9"


def test_sides_of_different_numbers_of_rounds_are_no_pairs() -> None:
    with pytest.raises(ValueError, match="shorter"):
        median_ratio([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.12345, "0.123"), (12.345, "12.3"), (999.4, "999"), (12345.6, "12,346")],
)
def test_a_figure_has_no_exponent(value: float, shown: str) -> None:
    assert show(value) == shown


def test_a_point_is_told_with_its_names() -> None:
    assert describe_point({"agent": "react", "calls": 8}) == "agent react, calls 8"
