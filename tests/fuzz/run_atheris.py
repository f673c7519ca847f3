"""Fuzz one target with atheris, which sees what inputs reach: ``python -m tests.fuzz.run_atheris gbnf``.

What it finds interesting is kept beside Pie's other caches, and the next run goes on from there. An
input that fails is written into this directory's ``corpora``, where the ordinary tests find it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import atheris

from pie_trio.config import default_cache_directory
from tests.fuzz.mutations import CORPORA

APPLICATION = "pie_trio.application"
READERS = [
    f"{APPLICATION}.authoring",
    f"{APPLICATION}.engines",
    f"{APPLICATION}.lifecycle.programs",
    f"{APPLICATION}.recording",
    f"{APPLICATION}.server.envelopes",
    f"{APPLICATION}.server.manifests",
    "pie_trio.inference.grammar",
]
"""To look at all modules takes half a minute at the start."""

with atheris.instrument_imports(include=READERS):
    from tests.fuzz.targets import TARGETS

MAX_INPUT_BYTES = 4096
SHARE_OF_TIME = 0.3
SECONDS_OF_INPUT = 20
MAX_RSS_MIB = 4096


def default_seconds() -> int:
    """Return how long each target may take of what ``PIE_FUZZ_SECONDS`` gives to all fuzzing."""
    return int(
        float(os.environ.get("PIE_FUZZ_SECONDS", "600")) * SHARE_OF_TIME / len(TARGETS)
    )


def main() -> None:
    """Fuzz the targets that are named, or all, each for so many seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=default_seconds())
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if unknown := set(options.targets) - TARGETS.keys():
        parser.error(f"expected {', '.join(TARGETS)}, got {', '.join(unknown)}")
    if len(options.targets) == 1:
        _fuzz(options.targets[0], options.seconds, options.seed)
        return
    failed = [name for name in options.targets or TARGETS if _run(name, options)]
    if failed:
        sys.exit(f"inputs that fail are in {CORPORA}: {', '.join(failed)}")


def _run(name: str, options: argparse.Namespace) -> int:
    """Fuzz a target in a process of its own, since libFuzzer ends it."""
    numbers = [f"--seconds={options.seconds}", f"--seed={options.seed}"]
    command = [sys.executable, "-m", "tests.fuzz.run_atheris", name, *numbers]
    return subprocess.run(command, check=False).returncode


def _fuzz(name: str, seconds: int, seed: int) -> None:
    found = default_cache_directory() / "fuzz" / name
    found.mkdir(parents=True, exist_ok=True)
    arguments = [
        f"-max_total_time={seconds}",
        f"-seed={seed}",
        f"-max_len={MAX_INPUT_BYTES}",
        f"-timeout={SECONDS_OF_INPUT}",
        f"-rss_limit_mb={MAX_RSS_MIB}",
        f"-artifact_prefix={CORPORA / name}/",
        "-print_final_stats=1",
        "-verbosity=0",
        *(str(found), str(CORPORA / name)),
    ]
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
