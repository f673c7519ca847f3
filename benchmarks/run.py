"""Runs a benchmark of the paper's evaluation, and keeps what came of it.

    python -m benchmarks.run agents --model MODELS/rand-60m --vllm VENV

Each leaves NAME.json, NAME.md and NAME.png in ``benchmarks/results/DATE``; the .md is an entry for
``benchmarks/LOG.md``. The older scripts of this folder print their figures and keep nothing:
``python -m benchmarks.run peers`` is ``python -m benchmarks.peers``.
"""

from __future__ import annotations

import argparse
import importlib
import runpy
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from benchmarks import reporting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.reporting import Report

BENCHMARKS = {
    "agents": "ReACT, CodeACT and Swarm against clients of another server (Fig. 6)",
    "function_calling": "three optimisations of an agent, stacked (Fig. 7)",
    "techniques": "trees of thought to attention sinks, against clients (Fig. 8)",
    "launch": "launches, one and many at once (Fig. 9)",
    "calls": "what a host call costs (Fig. 10)",
    "calls_per_token": "host calls for each token of techniques (Fig. 11)",
    "overhead": "bare engine, stream and stepwise, layer by layer (Tables 3 and 4)",
    "policies": "policies of batching (Table 5)",
    "scaling": "cost and memory by powers of two, until something gives",
    "traces": "requests as they came to real services: latency and goodput",
    "quantization": "what int8 costs in quality; no timing",
}
SCRIPTS = {
    "peers": "tokens a second of Pie and of other engines",
    "engine": "the engine alone",
    "server": "requests, events and WebSockets of the server",
    "hostile": "inferlets beside hostile ones",
}
"""They take their own options and print what they find."""


class Benchmark(Protocol):
    """A module of this folder."""

    __doc__: str | None

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add its own options."""
        ...

    def measure(self, options: argparse.Namespace) -> Report:
        """Measure all of it; takes minutes."""
        ...


def load(name: str) -> Benchmark:
    """Return a benchmark by its name."""
    module: Benchmark = importlib.import_module(f"benchmarks.{name}")
    return module


def run_script(name: str, arguments: Sequence[str]) -> None:
    """Run a script of this folder as if by its own name."""
    sys.argv = [name, *arguments]
    runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)


def main() -> None:
    arguments = sys.argv[1:]
    if arguments and arguments[0] in SCRIPTS:
        run_script(arguments[0], arguments[1:])
        return
    parser = argparse.ArgumentParser(
        prog="pie bench", description=(__doc__ or "").splitlines()[0]
    )
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, summary in BENCHMARKS.items():
        benchmark = load(name)
        command = commands.add_parser(
            name,
            help=summary,
            description=benchmark.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument(
            "--rounds", type=int, default=7, help="that count; one more warms up"
        )
        command.add_argument("--out", type=Path, metavar="DIR", help="for the results")
        command.add_argument(
            "--label", default="", help="goes into the names of the files"
        )
        benchmark.add_options(command)
    for name, summary in SCRIPTS.items():
        commands.add_parser(name, help=summary)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # servers end with us
    report = load(options.name).measure(options)
    name = f"{options.name}-{options.label}" if options.label else options.name
    folder = reporting.save(report, name, options.out)
    print("\n".join(reporting.table(report)))
    print(f"in {folder}: {name}.json, {name}.md")


if __name__ == "__main__":
    main()
