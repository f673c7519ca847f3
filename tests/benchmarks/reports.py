"""A small report, of two sides at two points."""

from __future__ import annotations

from benchmarks.pairing import Series
from benchmarks.reporting import Metric, Report

__all__ = ["make_report"]


def make_report() -> Report:
    """Return a report in which Pie wins at 1 and loses at 8."""
    speed = {
        ("Pie", 1): [4.0, 4.0],
        ("Pie", 8): [6.0, 6.0],
        ("other", 1): [2.0, 2.0],
        ("other", 8): [8.0, 8.0],
    }
    series = [
        Series({"at once": count}, side, {"speed": samples}, [0.0, 0.5])
        for (side, count), samples in speed.items()
    ]
    for one in series:
        one.samples["tokens"] = [1234.0, 1234.0]
    return Report(
        title="a race",
        metrics=(Metric("speed", "runs/s", "more"), Metric("tokens", "")),
        series=series,
        base="Pie",
        x="at once",
        settings={"dtype": "bfloat16"},
        notes=["It was short."],
    )
