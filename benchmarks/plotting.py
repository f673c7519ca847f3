"""Plots of reports: a column for each metric, a line for each side."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from benchmarks.pairing import describe_point, estimate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.pairing import Series
    from benchmarks.reporting import Report

__all__ = ["plot"]


def plot(report: Report, path: Path) -> None:
    """Write pictures of a report: medians, with bars for their intervals of confidence.

    Nothing is written of a report without series.

    Raises:
        ModuleNotFoundError: There is no matplotlib.
    """
    import_module("matplotlib").use("Agg")  # no display
    pyplot: Any = import_module("matplotlib.pyplot")
    if not report.series:
        return
    rows: dict[str, dict[str, list[Series]]] = {}
    for series in report.series:
        rest = {name: x for name, x in series.point.items() if name != report.x}
        sides = rows.setdefault(describe_point(rest), {})
        sides.setdefault(series.side, []).append(series)
    size = (4.5 * len(report.metrics), 3.2 * len(rows))
    figure, grid = pyplot.subplots(
        len(rows), len(report.metrics), figsize=size, squeeze=False
    )
    for line, (title, sides) in zip(grid, rows.items(), strict=True):
        for axes, metric in zip(line, report.metrics, strict=True):
            for side, all_series in sides.items():
                _draw(axes, side, all_series, metric.name, report.x)
            axes.set_title(title, fontsize=8)
            axes.set_xlabel(report.x)
            axes.set_ylabel(
                f"{metric.name}, {metric.unit}" if metric.unit else metric.name
            )
            axes.set_ylim(bottom=0)
            if any(isinstance(series.point[report.x], str) for series in report.series):
                axes.tick_params("x", rotation=40, labelsize=7)
            if report.is_logarithmic:
                axes.set_xscale("log", base=2)
            axes.grid(alpha=0.3)
        line[0].legend(fontsize=7)
    figure.suptitle(report.title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _draw(
    axes: Any, side: str, all_series: Sequence[Series], metric: str, x: str
) -> None:
    drawn = [series for series in all_series if series.samples.get(metric)]
    found = [estimate(series.samples[metric]) for series in drawn]
    errors = [
        [one.median - one.low for one in found],
        [one.high - one.median for one in found],
    ]
    places = [series.point[x] for series in drawn]
    middle = [one.median for one in found]
    # Between names nothing goes on.
    line = 0 if any(isinstance(place, str) for place in places) else 1
    axes.errorbar(
        places, middle, errors, label=side, marker="o", capsize=3, lw=line, elinewidth=1
    )
