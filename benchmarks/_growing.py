"""Doubles a number until something gives, and says what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from pie_trio.errors import PieError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

__all__ = ["COST", "MEMORY", "Bounds", "GaveError", "Growth", "grow"]

COST, MEMORY = "cost", "memory"
"""Metrics that are looked at: microseconds of CPU, and MB in all."""


class GaveError(Exception):
    """Something gives that is no error of Pie: its text says what."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """When it is enough.

    Attributes:
        most: The largest number.
        times: As many times the cheapest cost so far are too much.
        megabytes: More memory is too much.
        seconds: A measurement that takes longer is given up.
    """

    most: int
    times: float
    megabytes: float
    seconds: float


@dataclass(slots=True)
class Growth:
    """What was found.

    Attributes:
        figures: By number.
        gave: What gave, at which number.
    """

    figures: dict[int, Mapping[str, float]] = field(
        default_factory=dict[int, "Mapping[str, float]"]
    )
    gave: str = ""


async def grow(
    probe: Callable[[int], Awaitable[Mapping[str, float]]], bounds: Bounds
) -> Growth:
    """Measure at 1, 2, 4 and so on, until a bound is reached or the probe fails.

    Args:
        probe: Measures :data:`COST` and :data:`MEMORY` at a number.
        bounds: When to end.
    """
    found = Growth()
    number = 1
    while number <= bounds.most:
        try:
            with trio.fail_after(bounds.seconds):
                figures = await probe(number)
        except* trio.TooSlowError:
            found.gave = f"at {number} it took longer than {bounds.seconds:g} s"
        except* (PieError, GaveError) as group:
            found.gave = f"at {number}: {_first(group)}"
        if found.gave:
            return found
        found.figures[number] = figures
        least = min(old[COST] for old in found.figures.values())
        if figures[COST] > bounds.times * least:
            found.gave = (
                f"at {number} the cost is {figures[COST] / least:.1f} times the least"
            )
            return found
        if figures[MEMORY] > bounds.megabytes:
            found.gave = f"at {number} it takes more than {bounds.megabytes:g} MB"
            return found
        number *= 2
    found.gave = f"nothing up to {number // 2}"
    return found


def _first(group: BaseException) -> str:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    text = str(group).strip().splitlines()
    return text[-1] if text else type(group).__name__
