"""From saving a file to the first token, under ``pie run --watch`` on a warm machine.

``python -m benchmarks.edit_to_token``; the goal is 100 ms. It edits a program in a folder of its own and
waits for the first message of each new run. Part of the figure is how often files are looked at.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import describe_machine, spread

APP = """from inferlet_py import Context, inferlet, send

VERSION = {version}


@inferlet
async def main() -> None:
    async with Context() as ctx:
        await ctx.fill("Once upon a time")
        async for chunk in ctx.generate(max_tokens=1):
            await send(f"{{VERSION}}{{chunk.text}}\\n")
"""
PAUSE_SECONDS = 0.3
LIMIT_SECONDS = 120


def measure(folder: Path, count: int, model: list[str]) -> list[float]:
    """Return milliseconds from each write to the first token of the run that follows."""
    app = folder / "app.py"
    app.write_text(APP.format(version=0))
    command = [sys.executable, "-m", "pie_trio", "run", "--watch", *model, str(app)]
    figures: list[float] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None, "it is a pipe"
        try:
            read_version(process.stdout.readline())
            for version in range(1, count + 1):
                time.sleep(PAUSE_SECONDS)
                started = time.perf_counter()
                app.write_text(APP.format(version=version))
                while read_version(process.stdout.readline()) != version:
                    pass
                figures.append((time.perf_counter() - started) * 1e3)
        finally:
            process.terminate()
            process.wait(LIMIT_SECONDS)
    return figures


def read_version(line: str) -> int:
    """Return the number before the first token of a run."""
    digits = line[: len(line) - len(line.lstrip("0123456789"))]
    if not digits:
        raise RuntimeError(f"the program ended: {line!r}")
    return int(digits)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=30, help="edits (default: 30)")
    parser.add_argument("--model", help="as for pie run (default: pie-tiny)")
    options = parser.parse_args()
    model = ["--model", options.model] if options.model else []
    print(describe_machine())
    with tempfile.TemporaryDirectory() as name:
        figures = measure(Path(name), options.count, model)
    slowest = max(figures)
    print(f"edit to first token: {spread(figures)} ms, at most {slowest:.0f} ms")
    return 0 if statistics.median(figures) <= 100 else 1


if __name__ == "__main__":
    sys.exit(main())
