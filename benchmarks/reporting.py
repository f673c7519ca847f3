"""What a benchmark leaves behind: JSON with every sample, a table, a plot, an entry for the log."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import shlex
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import describe_machine
from benchmarks.pairing import estimate, median_ratio
from benchmarks.plotting import plot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.pairing import Point, Series

__all__ = ["RESULTS", "Metric", "Report", "find", "row", "save", "table"]

RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True, slots=True)
class Metric:
    """What is measured.

    Attributes:
        name: Of the samples.
        unit: For the reader.
        better: "more" or "less"; "" where it is neither.
    """

    name: str
    unit: str
    better: str = ""


@dataclass(slots=True)
class Report:
    """The result of a benchmark.

    Attributes:
        title: What was measured, in one line.
        metrics: In the order of the columns.
        series: The samples.
        base: The side that all others are compared with; "" for none.
        x: The parameter along the plot's axis.
        settings: What else decides the figures.
        notes: What a reader has to know, a sentence each.
        is_logarithmic: The plot's axis of ``x`` is.
    """

    title: str
    metrics: Sequence[Metric]
    series: list[Series]
    base: str
    x: str
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    is_logarithmic: bool = False


def save(report: Report, name: str, folder: Path | None = None) -> Path:
    """Write a report as NAME.json, NAME.md and, where there is matplotlib, NAME.png.

    Args:
        report: What was measured.
        name: Of the files.
        folder: Where to; ``benchmarks/results/DATE`` without.

    Returns:
        The folder.
    """
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    folder = folder or RESULTS / today
    folder.mkdir(parents=True, exist_ok=True)
    machine, command = _machine(), _command()
    content = {
        "name": name,
        "date": today,
        "machine": machine,
        "commit": _commit(),
        "command": command,
        **asdict(report),
    }
    text = json.dumps(content, indent=1, default=str)
    (folder / f"{name}.json").write_text(text + "\n")
    (folder / f"{name}.md").write_text(_entry(report, today, machine, command))
    try:
        plot(report, folder / f"{name}.png")
    except ModuleNotFoundError as error:
        print(f"no plot: {error}; install the dependency group `bench`")
    return folder


def _entry(report: Report, date: str, machine: str, command: str) -> str:
    """Return an entry for the log."""
    others = [value for series in report.series for value in series.others]
    settings = ", ".join(f"{name} {value}" for name, value in report.settings.items())
    lines = [
        f"## {date}: {report.title}",
        "",
        f"Machine {machine}; commit {_commit()}.",
    ]
    lines.append(f"`{command}`")
    if settings:
        lines.append(f"Settings: {settings}.")
    if others:
        middle, most = statistics.median(others), max(others)
        lines.append(
            f"Cores that others used: {middle:.2f}, at most {most:.2f}. Medians of "
            f"{len(report.series[0].others)} rounds in turn [95 % confidence]."
        )
    return "\n".join([*lines, *report.notes, "", *table(report), ""])


def table(report: Report) -> list[str]:
    """Return the lines of a Markdown table of all series, beside their ratios to the base."""
    parameters = list(report.series[0].point) if report.series else []
    bases = [series for series in report.series if series.side == report.base]
    compared = {name for series in bases for name in series.samples}
    heads = [*parameters, ""]
    for metric in report.metrics:
        heads.append(f"{metric.name}, {metric.unit}" if metric.unit else metric.name)
        if metric.name in compared:
            heads.append(f"{report.base} / it")
    lines = [row(heads), row(["---"] * len(heads))]
    for series in report.series:
        cells = [str(series.point[name]) for name in parameters] + [series.side]
        for metric in report.metrics:
            samples = series.samples.get(metric.name)
            cells.append(str(estimate(samples)) if samples else "")
            if metric.name in compared:
                cells.append(_ratio(report, series, metric))
        lines.append(row(cells))
    return lines


def _ratio(report: Report, series: Series, metric: Metric) -> str:
    base = find(report.series, series.point, report.base)
    ours = base.samples.get(metric.name) if base else None
    theirs = series.samples.get(metric.name)
    if base is series or not ours or not theirs or 0.0 in theirs:
        return ""
    return str(median_ratio(ours, theirs))


def find(all_series: Sequence[Series], point: Point, side: str) -> Series | None:
    """Return the series of a side at a point."""
    for series in all_series:
        if series.side == side and series.point == point:
            return series
    return None


def row(cells: Sequence[str]) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def _machine() -> str:
    """Return the processor, and the versions that decide the figures."""
    versions = describe_machine().partition("; load")[0]
    return f"{_processor()}, {versions}, torch {importlib.metadata.version('torch')}"


def _command() -> str:
    """Return the command, with the names of files and folders alone."""
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    return shlex.join(["python", "-m", "benchmarks.run", *words])


def _commit() -> str:
    """Return the commit that is measured, with a + if files were changed since."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always"]
    found = subprocess.run(
        [*git, "--dirty=+"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown processor"
