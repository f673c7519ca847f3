"""Pictures of what the parts of :mod:`benchmarks.gpu.run_all` have found."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["plot_ratios"]


def plot_ratios(
    parts: Mapping[str, Sequence[Mapping[str, Any]]], title: str, path: Path
) -> bool:
    """Draw a bar for each figure that is a ratio to the limit of the card.

    Args:
        parts: Rows by part.
        title: What it was measured on.
        path: Of the picture.

    Returns:
        Whether it was drawn: there may be no matplotlib, or no such figure.
    """
    found = {
        name: [row for row in rows if "ratio" in row] for name, rows in parts.items()
    }
    found = {name: rows for name, rows in found.items() if rows}
    if not found or find_spec("matplotlib") is None:
        return False
    import_module("matplotlib").use("Agg")  # no display
    pyplot: Any = import_module("matplotlib.pyplot")
    heights = [len(rows) for rows in found.values()]
    figure, grid = pyplot.subplots(
        len(found),
        1,
        figsize=(8, 0.3 * sum(heights) + 1.2 * len(found)),
        height_ratios=heights,
        squeeze=False,
        sharex=True,
    )
    for (axes,), (name, rows) in zip(grid, found.items(), strict=True):
        labels, ratios = [r["what"] for r in rows], [r["ratio"] for r in rows]
        axes.barh(range(len(rows)), ratios)
        axes.set_yticks(range(len(rows)), labels, fontsize=7)
        axes.invert_yaxis()
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set_title(name, fontsize=9)
        axes.grid(axis="x", alpha=0.3)
    grid[-1][0].set_xlabel("part of what the card could do at most")
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True
