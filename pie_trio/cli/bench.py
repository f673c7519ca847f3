"""``pie bench``: a benchmark of a checkout."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from pie_trio.errors import ConfigError

__all__ = ["add_bench"]

ROOT = Path(__file__).parents[2]


def add_bench(commands: Any) -> None:
    """Add ``pie bench``."""
    parser = commands.add_parser(
        "bench",
        help="measure what the benchmarks of a checkout measure",
        description="Run a benchmark, as `python -m benchmarks.run` does: `pie bench` lists them, "
        "and `pie bench NAME --help` has the options of one. They are part of a checkout, and not "
        "of the package.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        help="the name of a benchmark, and its own options",
    )
    parser.set_defaults(command=_bench)


def _bench(options: argparse.Namespace) -> int:
    if not (ROOT / "benchmarks" / "run.py").exists():
        raise ConfigError(
            f"there are no benchmarks in {ROOT}: they are part of a checkout of Pie; clone it, "
            "and install that with `pip install --editable .`"
        )
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    words = options.arguments or ["--help"]
    # In place of this process, so that signals reach the benchmark, which ends its servers.
    os.execve(
        sys.executable,
        [sys.executable, "-m", "benchmarks.run", *words],
        environment,
    )
