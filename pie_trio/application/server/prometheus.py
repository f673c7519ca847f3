"""Counters, gauges and histograms in the text format of Prometheus, version 0.0.4."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Counter", "Gauge", "Histogram", "Metric"]

Labels = tuple[tuple[str, str], ...]


class Metric:
    """A named family of numbers, one for each combination of labels.

    Args:
        name: With its unit, as ``pie_step_seconds``.
        help_text: One line that says what is counted.
    """

    kind = "untyped"

    def __init__(self, name: str, help_text: str) -> None:
        self.name, self.help_text = name, help_text

    def lines(self) -> Iterator[str]:
        """Yield the lines of the text format."""
        yield f"# HELP {self.name} {self.help_text}"
        yield f"# TYPE {self.name} {self.kind}"
        yield from self.samples()

    def samples(self) -> Iterator[str]:
        """Yield the lines with numbers."""
        raise NotImplementedError


class Gauge(Metric):
    """Numbers that go up and down."""

    kind = "gauge"

    def __init__(self, name: str, help_text: str) -> None:
        super().__init__(name, help_text)
        self.values: dict[Labels, float] = {}

    def set(self, value: float, **labels: str) -> None:
        """Replace a number."""
        self.values[tuple(labels.items())] = value

    def samples(self) -> Iterator[str]:
        """Yield the lines with numbers."""
        for labels, value in self.values.items():
            yield f"{self.name}{_braces(labels)} {_number(value)}"


class Counter(Gauge):
    """Numbers that only grow."""

    kind = "counter"

    def add(self, amount: float = 1, **labels: str) -> None:
        """Add to a number."""
        key = tuple(labels.items())
        self.values[key] = self.values.get(key, 0) + amount


class Histogram(Metric):
    """How often which sizes were seen.

    Args:
        name: With its unit.
        help_text: One line.
        bounds: Upper ends of the buckets, in order.
    """

    kind = "histogram"

    def __init__(self, name: str, help_text: str, bounds: Sequence[float]) -> None:
        super().__init__(name, help_text)
        self._bounds = bounds
        self._counts: dict[Labels, list[int]] = defaultdict(
            lambda: [0] * (len(bounds) + 1)
        )
        self._sums: dict[Labels, float] = defaultdict(float)

    def observe(self, value: float, **labels: str) -> None:
        """Count a size."""
        key = tuple(labels.items())
        self._counts[key][bisect_left(self._bounds, value)] += 1
        self._sums[key] += value

    def samples(self) -> Iterator[str]:
        """Yield the lines with numbers."""
        for labels, counts in self._counts.items():
            ends = [*map(_number, self._bounds), "+Inf"]
            for end, count in zip(ends, accumulate(counts), strict=True):
                yield f"{self.name}_bucket{_braces((*labels, ('le', end)))} {count}"
            yield f"{self.name}_sum{_braces(labels)} {_number(self._sums[labels])}"
            yield f"{self.name}_count{_braces(labels)} {sum(counts)}"


def _braces(labels: Labels) -> str:
    inner = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels)
    return f"{{{inner}}}" if inner else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
