"""What a token costs the server and its engine, in time of the processor, by who sends it.

    python -m benchmarks.token_cost --model DIR/rand-60m --concurrency 1 8 32 --rounds 3

The ways take turns on one server: OpenAI's route, a program that lets its generation send, one
whose loop sends each chunk, and one that decodes step by step. Launches are included, so that
`--tokens` changes the cost of each. With `--environment GOMP_SPINCOUNT=0` and the like, servers with
and without take turns.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from benchmarks.harness import describe_machine, spread
from benchmarks.peers import (
    PROGRAM,
    STEPWISE,
    HttpPeer,
    Starter,
    deploy,
    family,
    free_port,
    make_prompts,
    settle,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

LOOP = PROGRAM.replace(
    "        await generation.send()\n",
    "        async for chunk in generation:\n            await send(chunk.text)\n",
)
PROGRAMS = {"send": PROGRAM, "loop": LOOP, "stepwise": STEPWISE}
TICKS = 100.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--environment", nargs="*", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    print(describe_machine())
    with (
        ExitStack() as stack,
        tempfile.TemporaryDirectory(prefix="pie-token-cost-") as name,
    ):
        starter = Starter(Path(name), stack)
        ways = start(starter, options, "", {})
        if options.environment:
            changed = dict(pair.split("=", 1) for pair in options.environment)
            ways += start(
                starter, options, f" {' '.join(options.environment)}", changed
            )
        measure(ways, options)


def start(
    starter: Starter,
    options: argparse.Namespace,
    label: str,
    environment: dict[str, str],
) -> list[HttpPeer]:
    """Start a server, and return the ways to get a token from it."""
    port = free_port()
    process = starter.start(
        f"server{len(label)}",
        [
            *[
                sys.executable,
                "-m",
                "pie_trio",
                "serve",
                "--model",
                f"m={options.model}",
            ],
            *["--dtype", options.dtype, "--kv-memory", "2GiB", "--port", port],
            *["--data-dir", starter.folder / f"data{len(label)}"],
        ],
        **environment,
    )
    for name, text in PROGRAMS.items():
        trio.run(deploy, process, port, name, text)
    extra = {"model": "m"}
    return [
        HttpPeer(f"OpenAI's route{label}", process, port, "/v1/completions", extra),
        *(
            HttpPeer(
                f"{name}{label}", process, port, f"/v1/programs/{name}/run", is_pie=True
            )
            for name in PROGRAMS
        ),
    ]


def measure(ways: Sequence[HttpPeer], options: argparse.Namespace) -> None:
    """Let them take turns, and print what came of it."""
    rng = random.Random(1)
    for count in options.concurrency:
        found: dict[str, list[tuple[float, float, float]]] = {}
        for number in range(options.rounds + 1):
            for way in ways:
                prompts = make_prompts(count, options.tokens, rng)
                settle()
                before = used(way.process.pid)
                turn = way.run(prompts, options.tokens)
                if number:  # the first one warms up
                    after, num_tokens = used(way.process.pid), count * options.tokens
                    server, engine = (
                        (late - early) / num_tokens * 1e6
                        for early, late in zip(before, after, strict=True)
                    )
                    found.setdefault(way.name, []).append((turn.rate, server, engine))
        for name, values in found.items():
            rates, servers, engines = zip(*values, strict=True)
            print(
                f"  {count:3d} at once  {name:40s} tokens/s {spread(rates):28s} "
                f"us a token: server {spread(servers):24s} engine {spread(engines)}"
            )


def used(pid: int) -> tuple[float, float]:
    """Return the processor's time of a server, and of the processes that it has started."""
    server, *others = map(ticks, family(pid))
    return server / TICKS, sum(others) / TICKS


def ticks(pid: int) -> int:
    """Return the processor's time of a process in hundredths of a second."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return sum(map(int, text.rsplit(")", 1)[1].split()[11:13]))


if __name__ == "__main__":
    main()
