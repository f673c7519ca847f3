"""Results that were kept, read again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.pairing import Series
from benchmarks.reporting import RESULTS, Metric, Report

if TYPE_CHECKING:
    from collections.abc import Container
    from pathlib import Path

__all__ = ["Kept", "latest", "load"]


@dataclass(frozen=True, slots=True)
class Kept:
    """A report, and how it came about.

    Attributes:
        name: Of its files, as ``agents-500m``.
        folder: That has them.
    """

    name: str
    folder: Path
    date: str
    machine: str
    commit: str
    command: str
    report: Report

    @property
    def benchmark(self) -> str:
        """Its name without the label."""
        return self.name.partition("-")[0]


def load(path: Path) -> Kept:
    """Read what :func:`benchmarks.reporting.save` has written.

    Raises:
        ValueError: It is something else.
    """
    content = json.loads(path.read_text())
    if not isinstance(content, dict) or not {"series", "metrics"} <= content.keys():
        raise ValueError(
            f"{path} is no result of a benchmark: expected series, metrics"
        )
    report = Report(
        title=content["title"],
        metrics=[Metric(**metric) for metric in content["metrics"]],
        series=[Series(**series) for series in content["series"]],
        base=content["base"],
        x=content["x"],
        settings=content["settings"],
        notes=content["notes"],
        is_logarithmic=content["is_logarithmic"],
    )
    about = {name: content[name] for name in ("date", "machine", "commit", "command")}
    return Kept(path.stem, path.parent, report=report, **about)


def latest(benchmarks: Container[str], results: Path = RESULTS) -> list[Kept]:
    """Return the newest result of each name, in the order of names.

    Args:
        benchmarks: Whose results; others are kept there too.
        results: A folder with one for each date.
    """
    paths = {
        path.stem: path
        for path in sorted(results.glob("*/*.json"))
        if path.stem.partition("-")[0] in benchmarks
    }
    return [load(paths[name]) for name in sorted(paths)]
