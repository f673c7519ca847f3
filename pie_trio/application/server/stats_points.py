"""What happened on a model, as points in time that charts are drawn from."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from statistics import quantiles
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pie_trio.control.trace import CommandRecord, StepRecord

__all__ = ["Point", "make_points"]


@dataclass(frozen=True, slots=True)
class Point:
    """What happened on a model between two samples.

    Attributes:
        at: The end of that time, in seconds since 1970.
        seconds: How long it was.
        batches: That ended.
        commands: In these batches.
        tokens: New tokens in these batches.
        wait_p50: Of commands that finished, from submission to batch, in seconds; 0 without.
        wait_p95: The same.
    """

    at: float
    seconds: float
    batches: int
    commands: int
    tokens: int
    wait_p50: float
    wait_p95: float


def make_points(
    steps: Sequence[StepRecord],
    commands: Sequence[CommandRecord],
    edges: Sequence[float],
    offset: float,
) -> list[Point]:
    """Return what happened between each two edges.

    Args:
        steps: In the order in which they finished.
        commands: The same.
        edges: On trio's clock, ascending; what finishes at one of them counts to the time
            before it.
        offset: From trio's clock to seconds since 1970.
    """
    step_ends = [step.finished_at for step in steps]
    command_ends = [command.finished_at for command in commands]
    points = list[Point]()
    for begin, end in pairwise(edges):
        own = steps[bisect_right(step_ends, begin) : bisect_right(step_ends, end)]
        waits = [
            command.batched_at - command.submitted_at
            for command in commands[
                bisect_right(command_ends, begin) : bisect_right(command_ends, end)
            ]
            if command.batched_at
        ]
        p50, p95 = _middle_and_high(waits)
        points.append(
            Point(
                end + offset,
                end - begin,
                len(own),
                sum(step.size for step in own),
                sum(step.num_tokens for step in own),
                p50,
                p95,
            )
        )
    return points


def _middle_and_high(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return (values[0], values[0]) if values else (0.0, 0.0)
    cuts = quantiles(values, n=20, method="inclusive")
    return cuts[9], cuts[18]
