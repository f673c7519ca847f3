"""Paired measurements: the sides take turns in each round, and what came of it in numbers.

Other work on a machine comes and goes. Sides that take turns have the same neighbours, so the ratios
of one round say more than those of two medians.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.peers import busy_seconds, family

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from numpy.typing import NDArray

    Point = Mapping[str, int | float | str]
    Side = Callable[[Point], Awaitable[Mapping[str, float]]]
    """Measures once at a point, and returns its figures by the name of the metric."""

__all__ = [
    "Estimate",
    "Series",
    "describe_point",
    "estimate",
    "median_ratio",
    "show",
    "take_turns",
    "wait_idle",
]

NUM_RESAMPLES = 4000
CONFIDENCE_PERCENT = 95.0
IDLE_CORES, IDLE_SECONDS, MOST_SECONDS = 0.2, 0.2, 10.0
"""The machine counts as idle when no more of it was used for so long; nobody waits longer than that."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median with its interval of 95 % confidence, by bootstrap."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{show(self.median)} [{show(self.low)}-{show(self.high)}]"


@dataclass(slots=True)
class Series:
    """What one side has reached at one point.

    Attributes:
        point: The parameters.
        side: Who was measured.
        samples: Of each metric one value a round.
        others: Cores that other processes used meanwhile, one value a round.
    """

    point: Point
    side: str
    samples: dict[str, list[float]] = field(default_factory=dict)
    others: list[float] = field(default_factory=list)


def show(value: float) -> str:
    """Return a figure with three digits that count, and never with an exponent."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def estimate(samples: Sequence[float]) -> Estimate:
    """Return the median of samples and how sure it is; always the same for the same samples."""
    values = np.asarray(samples, float)
    rng = np.random.default_rng(0)
    picks = rng.integers(len(values), size=(NUM_RESAMPLES, len(values)))
    medians: NDArray[np.float64] = np.median(values[picks], axis=1)
    rest = (100 - CONFIDENCE_PERCENT) / 2
    low, high = np.percentile(medians, [rest, 100 - rest])
    return Estimate(float(np.median(values)), float(low), float(high))


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Return the median of the ratios of each round."""
    return estimate([a / b for a, b in zip(ours, theirs, strict=True)])


def wait_idle() -> None:
    """Wait until all sides are idle: some servers look for requests without a pause for a while.

    Whoever came after such a server would have a core less. Without servers there is nothing to wait
    for, and a processor that was idle is slow at first.
    """
    if len(family(os.getpid())) == 1:
        return
    began = time.perf_counter()
    while time.perf_counter() - began < MOST_SECONDS:
        since, busy = time.perf_counter(), busy_seconds()
        time.sleep(IDLE_SECONDS)
        if busy_seconds() - busy <= IDLE_CORES * (time.perf_counter() - since):
            return


async def take_turns(
    sides: Mapping[str, Side],
    points: Sequence[Point],
    *,
    rounds: int,
    settle: Callable[[], object] = wait_idle,
) -> list[Series]:
    """Measure all sides at all points, one after the other in each round.

    Args:
        sides: By name. Who begins changes from round to round.
        points: Parameters to measure at.
        rounds: That count; one more warms up.
        settle: Is called before each turn.
    """
    found: list[Series] = []
    names = list(sides)
    for point in points:
        series = {name: Series(point, name) for name in names}
        for number in range(rounds + 1):
            first = number % len(names)
            for name in [*names[first:], *names[:first]]:
                settle()
                began, others = time.perf_counter(), busy_seconds() - _own_seconds()
                figures = await sides[name](point)
                others = busy_seconds() - _own_seconds() - others
                if number == 0:
                    continue
                seconds = time.perf_counter() - began
                series[name].others.append(max(others, 0.0) / seconds)
                for metric, value in figures.items():
                    series[name].samples.setdefault(metric, []).append(value)
        found += series.values()
        print(f"  {describe_point(point)}: measured", flush=True)
    return found


def describe_point(point: Point) -> str:
    """Return parameters as text."""
    return ", ".join(f"{name} {value}" for name, value in point.items())


def _own_seconds() -> float:
    """Return the processor's time of this process and of all that it has started."""
    ticks = 0
    for pid in family(os.getpid()):
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:  # it has ended meanwhile
            continue
        ticks += sum(map(int, text.rsplit(")", 1)[1].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")
