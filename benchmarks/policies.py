"""Batching policies side by side: stepwise inferlets, and a mix with streams and slow tools.

    python -m benchmarks.run policies --inferlets 8 32 128 --rounds 3

The paper's table 5 has requests per second at 128 inferlets: eager 5.61, K 30.09, T 78.11,
adaptive 84.85. Guests are real (Wasm); the engine is the model named by ``--model``, or by
default one whose step takes a fixed time, as that of a model whose weights are read from memory:
``--step-ms`` for the weights and ``--row-us`` for each row. That makes the figures those of the
policies, not of the processor, which the guests need as well. Rounds take turns, so that slow
moments of the machine hit all policies alike.
"""

from __future__ import annotations

import random
import statistics
import time
from functools import partial
from typing import TYPE_CHECKING

import trio

from benchmarks.harness import (
    NullEngine,
    describe_machine,
    make_parser,
    make_program,
    open_bare_launcher,
    spread,
)
from benchmarks.pairing import describe_point, take_turns
from benchmarks.reporting import Metric, Report
from pie_trio.config import ControlConfig

if TYPE_CHECKING:
    import argparse

    from benchmarks.pairing import Point, Series, Side
    from pie_trio.application.lifecycle.instances import Launcher
    from pie_trio.engine_api import Batch, BatchResult

METRICS = (Metric("rate", "requests/s", "more"), Metric("batch", ""))
POLICIES = ("eager", "k:8", "t:0.016", "k_or_t:8,0.016", "adaptive", "rendezvous")

STEPWISE = make_program(
    "from inferlet_py import Context, inferlet\n"
    "@inferlet\n"
    "async def main(tokens: int) -> None:\n"
    "    async with Context() as context:\n"
    "        dist = await context.forward(range(1, 17), top=4)\n"
    "        for _ in range(tokens):\n"
    "            dist = await context.forward([dist.argmax()], top=4)\n"
)
STREAMING = make_program(
    "from inferlet_py import Context, inferlet\n"
    "@inferlet\n"
    "async def main(tokens: int) -> None:\n"
    "    async with Context() as context:\n"
    "        context.append(range(1, 17))\n"
    "        await context.generate(max_tokens=tokens, stop_tokens=[]).tokens()\n"
)
TOOL = make_program(
    "from inferlet_py import Context, inferlet, sleep\n"
    "@inferlet\n"
    "async def main(tokens: int) -> None:\n"
    "    async with Context() as context:\n"
    "        dist = await context.forward(range(1, 17), top=4)\n"
    "        for step in range(tokens):\n"
    "            if step % 8 == 4:\n"
    "                await sleep(0.1)  # a tool\n"
    "            dist = await context.forward([dist.argmax()], top=4)\n"
)


class TimedEngine(NullEngine):
    """Takes a time that grows with the batch, without using the processor."""

    def __init__(self, step_seconds: float, row_seconds: float) -> None:
        super().__init__()
        self.step_seconds, self.row_seconds = step_seconds, row_seconds

    def execute(self, batch: Batch) -> BatchResult:
        """Wait, and return a token for each output row."""
        num_tokens = sum(len(forward.token_ids) for forward in batch.forwards)
        time.sleep(self.step_seconds + self.row_seconds * num_tokens)
        return super().execute(batch)


async def measure_load(
    launcher: Launcher,
    engine: TimedEngine,
    *,
    count: int,
    tokens: int,
    requests: int,
    think_seconds: float,
    is_mixed: bool,
) -> tuple[float, float]:
    """Return requests per second, and the median size of the batches weighed by their rows.

    There are ``count`` clients, each of which makes its next request some time after the last
    one has ended. Clients that all began at the same moment would stay in step by themselves:
    trio runs everybody whom a step has woken before the batcher.
    """
    programs = [STEPWISE, STREAMING, TOOL] if is_mixed else [STEPWISE]
    for program in programs:
        await launcher.compile(program)
    engine.sizes.clear()
    choose = random.Random(0)
    lengths = [
        [
            (
                choose.uniform(0, 2 * think_seconds),
                choose.randint(tokens // 2, tokens * 3 // 2),
            )
            for _ in range(requests)
        ]
        for _ in range(count)
    ]

    async def client(number: int) -> None:
        program = programs[number % len(programs)]
        for pause, length in lengths[number]:
            await trio.sleep(pause)
            await launcher.prepare(program, {"tokens": length}).run()

    started = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(client, number)
    elapsed = time.perf_counter() - started
    rows = sorted(size for size in engine.sizes for _ in range(size))
    return count * requests / elapsed, rows[len(rows) // 2]


async def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=3)
    add_options(parser)
    options = parser.parse_args()
    print(describe_machine())
    print(f"a step takes {options.step_ms} ms and {options.row_us} us a token")
    for series in await _take_turns(options):
        rates, sizes = (series.samples[metric.name] for metric in METRICS)
        print(
            f"  {describe_point(series.point)}, {series.side:18s} {spread(rates)} "
            f"requests/s, batch {statistics.median(sizes):.0f}"
        )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the load and the policies."""
    parser.add_argument("--inferlets", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--requests", type=int, default=3, help="of each client")
    parser.add_argument("--think-ms", type=float, default=20.0, help="between requests")
    parser.add_argument("--step-ms", type=float, default=15.0)
    parser.add_argument("--row-us", type=float, default=100.0)
    parser.add_argument("--policies", nargs="+", default=POLICIES)


def measure(options: argparse.Namespace) -> Report:
    """Measure each policy with each number of inferlets."""
    return Report(
        title="policies of batching",
        metrics=METRICS,
        series=trio.run(_take_turns, options),
        base=options.policies[-1],
        x="inferlets",
        settings={
            "a step": f"{options.step_ms:g} ms",
            "a token of it": f"{options.row_us:g} us",
            "requests of each client": options.requests,
            "tokens": options.tokens,
            "between requests": f"{options.think_ms:g} ms",
        },
        notes=["Batch is the median size, weighed by rows."],
        is_logarithmic=True,
    )


async def _take_turns(options: argparse.Namespace) -> list[Series]:
    points: list[Point] = [
        {"load": load, "inferlets": count}
        for load in ("stepwise", "mixed")
        for count in options.inferlets
    ]
    sides: dict[str, Side] = {
        policy: partial(_run, policy, options) for policy in options.policies
    }
    return await take_turns(sides, points, rounds=options.rounds)


async def _run(
    policy: str, options: argparse.Namespace, point: Point
) -> dict[str, float]:
    engine = TimedEngine(options.step_ms / 1e3, options.row_us / 1e6)
    control = ControlConfig(policy=policy)
    async with open_bare_launcher(engine=engine, control=control) as launcher:
        # Each request of the slow policies takes long enough.
        tokens = options.tokens if policy != "eager" else 8
        rate, size = await measure_load(
            launcher,
            engine,
            count=int(point["inferlets"]),
            tokens=tokens,
            requests=options.requests,
            think_seconds=options.think_ms / 1e3,
            is_mixed=point["load"] == "mixed",
        )
    return {"rate": rate * (tokens + 1) / (options.tokens + 1), "batch": size}


if __name__ == "__main__":
    trio.run(main)
