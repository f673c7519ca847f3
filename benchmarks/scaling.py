"""Cost and memory as inferlets, contexts, programs and connections grow by powers of two.

    python -m benchmarks.run scaling

Each grows until something gives: a limit refuses more, the cost is --times what it was at its least,
memory reaches --megabytes, or a measurement takes longer than --seconds. Inferlets and contexts run
in this process over an engine that answers at once, so that the cost is the host's and the guests'.
Programs and connections are those of a server with pie-tiny, whose engine is a process of its own.

- inferlets: as many at once, each decodes step by step; microseconds of CPU a token.
- contexts: of one inferlet, which lets them go on at once, 512 at most; the same.
- programs: deployed, each of another text; microseconds of CPU to deploy one more.
- connections: idle ones to the server; microseconds of CPU a token of an inferlet beside them.
"""

from __future__ import annotations

import gc
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from benchmarks._growing import COST, MEMORY, Bounds, GaveError, grow
from benchmarks._small_server import SmallServer
from benchmarks.harness import (
    NullEngine,
    make_program,
    memory_bytes,
    open_bare_launcher,
)
from benchmarks.pairing import Series
from benchmarks.peers import Starter
from benchmarks.reporting import Metric, Report
from pie_trio.application.run.setup import prepare_language
from pie_trio.config import WasmConfig

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable, Mapping

    from pie_trio.application.host.instance_log import LogLine

    Probe = Callable[[int], Awaitable[Mapping[str, float]]]

NUM_PAGES = 1 << 17
NUM_AT_ONCE = 512
"""Commands of one inferlet; more than 1024 in flight are refused."""
METRICS = (Metric(COST, "us of CPU"), Metric(MEMORY, "MB"), Metric("each", "MB"))
INFERLET = make_program(
    "from inferlet_py import Context, inferlet, log, open_nursery, receive, sleep_until\n"
    "@inferlet\n"
    "async def main(contexts: int, tokens: int) -> None:\n"
    "    all_contexts = [Context() for _ in range(contexts)]\n"
    "    async def go_on(context: Context) -> None:\n"
    "        await context.forward([1], top=1)\n"
    "    async def go_all() -> None:\n"
    f"        for first in range(0, contexts, {NUM_AT_ONCE}):\n"
    "            async with open_nursery() as nursery:\n"
    f"                for context in all_contexts[first : first + {NUM_AT_ONCE}]:\n"
    "                    nursery.start_soon(go_on, context)\n"
    "    await go_all()\n"
    "    log('ready')\n"
    "    await receive()\n"
    "    for _ in range(tokens):\n"
    "        await go_all()\n"
    "    log('done')\n"
    "    await sleep_until(1e12)\n"
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what grows, and until when."""
    kinds = ["inferlets", "contexts", "programs", "connections"]
    parser.set_defaults(rounds=1)
    parser.add_argument("--kinds", nargs="+", default=kinds, choices=kinds)
    parser.add_argument("--most", type=int, default=1 << 16, help="of anything")
    parser.add_argument("--times", type=float, default=4.0, help="the least cost")
    parser.add_argument("--megabytes", type=float, default=4096.0)
    parser.add_argument("--seconds", type=float, default=120.0, help="of a measurement")
    parser.add_argument("--tokens", type=int, default=16, help="of each context")


def measure(options: argparse.Namespace) -> Report:
    """Let each grow until something gives."""
    bounds = Bounds(options.most, options.times, options.megabytes, options.seconds)
    prepare_language(WasmConfig())  # or the first measurement would wait for it
    series: list[Series] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="scaling-") as folder, ExitStack() as stack:
        starter = Starter(Path(folder), stack)
        for kind in options.kinds:
            if kind in ("inferlets", "contexts"):
                probe: Probe = partial(_guests, kind, options.tokens)
            else:
                server = SmallServer(starter, kind)
                probe = server.programs if kind == "programs" else server.connections
            found = trio.run(grow, probe, bounds)
            notes.append(f"{kind}: {found.gave}.")
            print(f"  {notes[-1]}", flush=True)
            for number, figures in found.figures.items():
                samples = {name: [value] for name, value in figures.items()}
                point = {"of": kind, "number": number}
                series.append(Series(point, "Pie", samples))
    return Report(
        title="cost and memory by powers of two",
        metrics=METRICS,
        series=series,
        base="",
        x="number",
        settings={
            "tokens": options.tokens,
            "until the cost is": f"{options.times:g} times the least",
            "or memory": f"{options.megabytes:g} MB",
            "or a measurement takes": f"{options.seconds:g} s",
        },
        notes=["What gave:", *notes],
        is_logarithmic=True,
    )


async def _guests(kind: str, num_tokens: int, number: int) -> dict[str, float]:
    """Measure inferlets of a context each, or one with so many."""
    num_guests, num_contexts = (number, 1) if kind == "inferlets" else (1, number)
    waiting = num_guests
    reached = trio.Event()

    def on_log(line: LogLine) -> None:
        nonlocal waiting
        waiting -= 1
        if waiting == 0:
            reached.set()

    engine = NullEngine(num_pages=NUM_PAGES)
    async with open_bare_launcher(engine=engine) as launcher:
        await launcher.compile(INFERLET)
        gc.collect()
        before = memory_bytes()
        arguments = {"contexts": num_contexts, "tokens": num_tokens}
        guests = [
            launcher.prepare(INFERLET, arguments, on_log=on_log)
            for _ in range(num_guests)
        ]
        async with trio.open_nursery() as nursery:
            for guest in guests:
                nursery.start_soon(_run, guest.run)
            await reached.wait()
            waiting, reached = num_guests, trio.Event()
            began = time.process_time()
            for guest in guests:
                await guest.session.inbox.put("go on")
            await reached.wait()
            seconds = time.process_time() - began
            size = (memory_bytes() - before) / 1e6
            nursery.cancel_scope.cancel()
    return {
        COST: seconds * 1e6 / (number * num_tokens),
        MEMORY: size,
        "each": size / number,
    }


async def _run(run: Callable[[], Awaitable[str]]) -> None:
    result = await run()
    raise GaveError(f"an inferlet has ended: {result}")
