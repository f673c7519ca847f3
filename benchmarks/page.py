"""Writes ``docs/benchmarks.md`` from the results that are kept: ``python -m benchmarks.page``.

Of each benchmark and label the newest result counts. Plots are copied to ``docs/images/benchmarks``.
"""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks._digest import check_goal, digest, losses
from benchmarks._layers import draw_layers
from benchmarks._loading import latest
from benchmarks._sections import SECTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from benchmarks._loading import Kept
    from benchmarks._sections import Section
    from benchmarks.reporting import Report

__all__ = ["IMAGES", "NAMES", "PAGE", "make_page", "make_pictures"]

DOCS = Path(__file__).parents[1] / "docs"
PAGE, IMAGES = DOCS / "benchmarks.md", DOCS / "images" / "benchmarks"
NAMES = [section.name for section in SECTIONS]
LAYERS = ("guest", "waiting", "device")
INTRODUCTION = """# Benchmarks

The paper's evaluation, run again on a small machine, against baselines with all that they have switched on. Made by
`python -m benchmarks.page` from `benchmarks/results/`, where every sample is; `benchmarks/LOG.md` keeps all that was ever
measured, failures included, and [development](development.md#benchmarks) says how to run it. In each round all sides take
turns; figures are medians. In brackets beside that of another side stands the median of the rounds' ratios, Pie's (or the named base's) over
it, with its interval of 95 % confidence: for throughputs more than 1 is a win for Pie, for times less.
"""


def make_page(all_kept: Sequence[Kept]) -> str:
    """Return the page."""
    lines = [INTRODUCTION]
    for section in SECTIONS:
        lines += [f"## {section.title}", "", f"**The paper.** {section.paper}", ""]
        lines += [f"**Here.** {section.ours}", ""]
        found = [kept for kept in all_kept if kept.benchmark == section.name]
        for kept in found:
            lines += _describe(kept, section)
        if not found:
            command = f"`python -m benchmarks.run {section.name}`"
            if section.is_printed:
                lines += [
                    f"{command} prints the figures; `benchmarks/LOG.md` has them."
                ]
            else:
                lines += [f"Not measured yet: {command}."]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def make_pictures(all_kept: Sequence[Kept]) -> dict[str, bytes]:
    """Return the pictures of the page, by the names of their files."""
    found: dict[str, bytes] = {}
    for kept in all_kept:
        plot = kept.folder / f"{kept.name}.png"
        if plot.exists():
            found[plot.name] = plot.read_bytes()
        if bars := _layers(kept.report):
            found[f"{kept.name}-layers.svg"] = draw_layers(bars).encode()
    return found


def _describe(kept: Kept, section: Section) -> Iterator[str]:
    report = kept.report
    yield f"### {report.title}"
    yield ""
    yield _circumstances(kept)
    yield ""
    if (kept.folder / f"{kept.name}.png").exists():
        yield f"![{report.title}](images/benchmarks/{kept.name}.png)"
        yield ""
    if _layers(report):
        yield f"![where the time of a token goes](images/benchmarks/{kept.name}-layers.svg)"
        yield ""
        yield (
            "Of a token that is decoded stepwise: *guest* is from its result to the next forward, the guest "
            "itself and the way through the layers; *waiting* from there to the step that takes it; *device* "
            "from there to the result."
        )
        yield ""
    yield from digest(report)
    yield ""
    if report.notes:
        yield " ".join(report.notes)
        yield ""
    yield from _goals(report, section)
    yield from _losses(report, section)


def _circumstances(kept: Kept) -> str:
    report = kept.report
    settings = "; ".join(f"{name}: {value}" for name, value in report.settings.items())
    others = [value for series in report.series for value in series.others]
    text = f"{kept.date}, {kept.machine}, commit {kept.commit}: `{kept.command}`. "
    text += f"Settings: {settings}." if settings else ""
    if others:
        rounds = len(report.series[0].others)
        text += (
            f" Rounds: {rounds}; other processes used {statistics.median(others):.2f} "
            f"cores, at most {max(others):.2f}."
        )
    return text


def _goals(report: Report, section: Section) -> Iterator[str]:
    for goal in section.goals:
        if found := check_goal(report, goal):
            yield f"**Goal**: {goal}. {'; '.join(found)}."
            yield ""


def _losses(report: Report, section: Section) -> Iterator[str]:
    is_against_others = report.base.startswith("Pie")
    if not is_against_others or not any(metric.better for metric in report.metrics):
        return
    found = losses(report)
    if not found:
        yield "**Where Pie loses**: nowhere, as far as the intervals are sure."
        yield ""
        return
    yield "**Where Pie loses**"
    yield ""
    yield from (f"- {line}" for line in found)
    yield ""
    if section.why:
        yield f"**Why.** {section.why}"
        yield ""


def _layers(report: Report) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """Return what the stacked bars are made of; nothing for most reports."""
    return {
        ", ".join(str(value) for value in series.point.values()): {
            name: series.samples[name] for name in LAYERS
        }
        for series in report.series
        if set(LAYERS) <= series.samples.keys()
    }


def main() -> None:
    all_kept = latest(NAMES)
    PAGE.write_text(make_page(all_kept))
    shutil.rmtree(IMAGES, ignore_errors=True)
    for name, content in make_pictures(all_kept).items():
        IMAGES.mkdir(parents=True, exist_ok=True)
        (IMAGES / name).write_bytes(content)
    print(f"{PAGE}: {len(all_kept)} results")


if __name__ == "__main__":
    main()
