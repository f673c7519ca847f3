"""Where the time of a token goes, as an SVG: a bar for each model and number of guests."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from benchmarks.pairing import estimate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["COLORS", "draw_layers"]

COLORS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2")
WIDTH, BAR, GAP, LEFT, TOP = 720, 22, 12, 190, 34


def draw_layers(
    bars: Mapping[str, Mapping[str, Sequence[float]]], unit: str = "ms"
) -> str:
    """Return an SVG of medians on top of each other.

    Args:
        bars: By label, samples of each part. Parts have the same order in all of them.
        unit: Of the samples.
    """
    medians = {
        label: {name: estimate(samples).median for name, samples in parts.items()}
        for label, parts in bars.items()
    }
    most = max((sum(parts.values()) for parts in medians.values()), default=0.0) or 1.0
    names = list(next(iter(medians.values()), {}))
    height = TOP + len(medians) * (BAR + GAP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        *_legend(names),
    ]
    for number, (label, parts) in enumerate(medians.items()):
        top = TOP + number * (BAR + GAP)
        lines += _bar(label, parts, top, (WIDTH - LEFT - 90) / most, unit)
    return "\n".join([*lines, "</svg>", ""])


def _legend(names: Sequence[str]) -> Iterator[str]:
    for number, name in enumerate(names):
        x = LEFT + number * 120
        color = COLORS[number % len(COLORS)]
        yield f'<rect x="{x}" y="8" width="12" height="12" fill="{color}"/>'
        yield f'<text x="{x + 18}" y="18">{escape(name)}</text>'


def _bar(
    label: str, parts: Mapping[str, float], top: int, scale: float, unit: str
) -> Iterator[str]:
    middle = top + BAR / 2 + 4
    yield f'<text x="{LEFT - 8}" y="{middle:g}" text-anchor="end">{escape(label)}</text>'
    x = float(LEFT)
    for number, (name, value) in enumerate(parts.items()):
        width = value * scale
        color = COLORS[number % len(COLORS)]
        yield (
            f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="{BAR}" fill="{color}">'
            f"<title>{escape(name)}: {value:.3g} {unit}</title></rect>"
        )
        x += width
    total = sum(parts.values())
    yield f'<text x="{x + 6:.1f}" y="{middle:g}">{total:.3g} {unit}</text>'
