"""Draw the loss curve of a run: ``python -m training.plot build/run``."""

from __future__ import annotations

import argparse
import csv
import logging
from importlib import import_module
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def plot_losses(folder: Path) -> bool:
    """Write ``losses.png`` beside ``losses.csv``.

    Returns:
        Whether there is a curve now; without matplotlib, the log says how to get one.
    """
    image_path = folder / "losses.png"
    try:
        import_module("matplotlib").use("Agg")  # no display
        pyplot: Any = import_module("matplotlib.pyplot")
    except ImportError:
        logger.warning(
            "no loss curve: matplotlib is missing. To get %s, run\n"
            "  pip install matplotlib\n  python -m training.plot %s",
            image_path,
            folder,
        )
        return False
    with (folder / "losses.csv").open(newline="") as file:
        # A resumed run may have taken some steps twice: the last time counts.
        losses = {int(r["step"]): float(r["loss"]) for r in csv.DictReader(file)}
    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot(*zip(*sorted(losses.items()), strict=True))
    axes.set(xlabel="step", ylabel="weighted loss", yscale="log", title=folder.name)
    axes.grid(visible=True, alpha=0.3)
    figure.tight_layout()
    figure.savefig(image_path, dpi=110)
    pyplot.close(figure)
    return True


def main() -> None:
    """Draw from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="what --folder was for the trainer")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not plot_losses(args.folder):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
