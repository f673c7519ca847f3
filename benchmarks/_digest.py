"""A report in short: a line for each point, what was lost, and which goals were reached."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.pairing import describe_point, estimate, median_ratio, show
from benchmarks.reporting import find, row

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from benchmarks.pairing import Estimate, Point
    from benchmarks.reporting import Metric, Report

__all__ = ["Goal", "check_goal", "digest", "losses"]


@dataclass(frozen=True, slots=True)
class Goal:
    """What a ratio has to be.

    Attributes:
        metric: Of which.
        side: It is the base's figure over this side's.
        least: It is at least this, or
        most: at most that.
        where: Parameters of the points that it holds for; all without.
        base: Another side than the report's base.
    """

    metric: str
    side: str
    least: float = 0.0
    most: float = float("inf")
    where: Mapping[str, int | float | str] = field(
        default_factory=dict[str, "int | float | str"]
    )
    base: str = ""

    def __str__(self) -> str:
        bound = f"at least {self.least:g}" if self.least else f"at most {self.most:g}"
        where = f" ({describe_point(self.where)})" if self.where else ""
        return f"{self.metric} {bound} of {self.side}'s{where}"


def digest(report: Report) -> list[str]:
    """Return a table: a line for each point, with the medians of all sides.

    Beside that of another side stands the base's over it; see :func:`benchmarks.pairing.median_ratio`.
    """
    sides = _sides(report)
    measured = {
        (metric.name, series.side)
        for series in report.series
        for metric in report.metrics
        if series.samples.get(metric.name)
    }
    columns = [
        (metric, side)
        for metric in report.metrics
        for side in sides
        if (metric.name, side) in measured
    ]
    points = _points(report)
    parameters = list(points[0])
    heads = [
        f"{side}: {_head(metric)}" if len(sides) > 1 else _head(metric)
        for metric, side in columns
    ]
    lines = [row([*parameters, *heads])]
    lines.append(row(["---"] * (len(parameters) + len(columns))))
    for point in points:
        cells = [str(point[name]) for name in parameters]
        lines.append(row([*cells, *(_cell(report, point, m, s) for m, s in columns)]))
    return lines


def losses(report: Report) -> list[str]:
    """Return where the base is worse than another side, as far as the intervals are sure."""
    found: list[str] = []
    for metric, side, point, ratio in _ratios(report):
        is_worse = ratio.high < 1 if metric.better == "more" else ratio.low > 1
        if metric.better and is_worse:
            where = describe_point(point)
            found.append(f"{where}: {metric.name} is {ratio} of {side}'s")
    return found


def check_goal(report: Report, goal: Goal) -> list[str]:
    """Return at which points a goal was reached or missed."""
    found: list[str] = []
    for point in _points(report):
        if not goal.where.items() <= point.items():
            continue
        ratio = _ratio(report, point, goal.metric, goal.base or report.base, goal.side)
        if ratio is not None:
            reached = goal.least <= ratio.median <= goal.most
            verdict = "reached" if reached else "**missed**"
            found.append(f"{describe_point(point)}: {ratio}, {verdict}")
    return found


def _head(metric: Metric) -> str:
    return f"{metric.name}, {metric.unit}" if metric.unit else metric.name


def _cell(report: Report, point: Point, metric: Metric, side: str) -> str:
    series = find(report.series, point, side)
    samples = series.samples.get(metric.name) if series else None
    if not samples:
        return ""
    value = show(estimate(samples).median)
    ratio = _ratio(report, point, metric.name, report.base, side)
    return value if side == report.base or ratio is None else f"{value} ({ratio})"


def _ratios(report: Report) -> Iterator[tuple[Metric, str, Point, Estimate]]:
    for metric in report.metrics:
        for side in _sides(report):
            for point in _points(report) if side != report.base else ():
                ratio = _ratio(report, point, metric.name, report.base, side)
                if ratio is not None:
                    yield metric, side, point, ratio


def _ratio(
    report: Report, point: Point, metric: str, base: str, side: str
) -> Estimate | None:
    ours, theirs = find(report.series, point, base), find(report.series, point, side)
    if ours is None or theirs is None:
        return None
    above, below = ours.samples.get(metric), theirs.samples.get(metric)
    if not above or not below or 0.0 in below:
        return None
    return median_ratio(above, below)


def _sides(report: Report) -> Sequence[str]:
    return list(dict.fromkeys(series.side for series in report.series))


def _points(report: Report) -> Sequence[Point]:
    found: list[Point] = []
    for series in report.series:
        if series.point not in found:
            found.append(series.point)
    return found
