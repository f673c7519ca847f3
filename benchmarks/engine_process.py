"""The engine in a thread of the server against one in a process of its own, through the whole stack.

    python -m benchmarks.engine_process --model DIR/rand-60m --guests 1 8 32 --repeats 5

Both are loaded at once and take turns, so that they meet the same contention. The delay of the
event loop is how much later than it should a task that sleeps for 2 ms is woken while the engine
is busy. The CPU is that of the server's process alone, without the engine's where that has its own.
`--steps` measures one step of a fake engine that costs nothing, from the call to its result: with a
token a row, and with a distribution beside it. The fastest tenth says something where others compute, too.
"""

from __future__ import annotations

import os
import statistics
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import trio

from benchmarks.harness import (
    NullEngine,
    describe_machine,
    make_parser,
    make_program,
    open_bare_launcher,
    spread,
)
from benchmarks.streams import PROGRAM, measure_guests
from pie_trio.application.engines.device import open_process_device
from pie_trio.application.engines.process import engine_environment
from pie_trio.application.engines.remote import RemoteEngine
from pie_trio.application.run.setup import default_model, load_engine, parse_model
from pie_trio.control.device_thread import open_device_thread
from pie_trio.engine_api import Batch, ForwardRequest, OutputSpec, SamplerSpec

if TYPE_CHECKING:
    import argparse

    from pie_trio.application.lifecycle.instances import Launcher
    from pie_trio.control.device_thread import Device

NAP_SECONDS = 0.002
KINDS = ("thread", "process")
TOP_K = 32


async def main() -> None:
    parser = make_parser((__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="[NAME=]DIR (default: pie-tiny)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--threads", type=int, help="of a step")
    parser.add_argument("--guests", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", action="store_true", help="of a fake engine only")
    options = parser.parse_args()
    print(describe_machine())
    if options.steps:
        await measure_steps()
    else:
        await measure_stack(options)


async def measure_steps() -> None:
    """Print the time of a step that does nothing, as the batcher sees it."""
    local = NullEngine()
    remote = RemoteEngine("null", NullEngine, engine_environment(1))
    async with open_device_thread(local) as thread, open_process_device(remote) as own:
        for size, top_k in product((1, 8, 32), (0, TOP_K)):
            batch = make_batch(size, top_k)
            found: dict[str, list[tuple[float, float, float]]] = {}
            for _ in range(5):
                for name, device, is_here in (
                    ("in the loop", thread, True),
                    ("thread", thread, False),
                    ("process", own, False),
                    ("process, polled", own, True),
                ):
                    figure = await time_steps(device, batch, is_here=is_here)
                    found.setdefault(name, []).append(figure)
            for name, figures in found.items():
                wall, fastest, cpu = zip(*figures, strict=True)
                print(
                    f"  {size:3d} rows, top {top_k:2d}  {name:16s} {spread(list(wall)):26s} us a "
                    f"step, fastest tenth {min(fastest):.0f}, server CPU {spread(list(cpu))}"
                )
    remote.close()


async def time_steps(
    device: Device, batch: Batch, *, is_here: bool, count: int = 400
) -> tuple[float, float, float]:
    """Return microseconds of a step, of the fastest tenth, and of the CPU of this process."""
    walls: list[float] = []
    cpu = time.process_time()
    for _ in range(count):
        start = time.perf_counter()
        await device.execute(batch, is_here=is_here)
        walls.append(time.perf_counter() - start)
        await trio.lowlevel.checkpoint()
    cpu = time.process_time() - cpu
    fastest = statistics.mean(sorted(walls)[: count // 10])
    return statistics.mean(walls) * 1e6, fastest * 1e6, cpu / count * 1e6


def make_batch(size: int, top_k: int) -> Batch:
    """Return a step of so many contexts of 300 tokens."""
    specs = (OutputSpec(np.array([0], np.int32), SamplerSpec(), top_k),)
    return Batch(
        tuple(
            ForwardRequest(
                np.array([5], np.int32),
                np.array([300], np.int32),
                np.arange(19, dtype=np.int32),
                301,
                outputs=specs,
            )
            for _ in range(size)
        )
    )


async def measure_stack(options: argparse.Namespace) -> None:
    """Print tokens a second, CPU and delays of both, as pairs."""
    model = parse_model(options.model) if options.model else default_model()
    model = replace(model, dtype=options.dtype, num_threads=options.threads)
    async with AsyncExitStack() as stack:
        launchers: dict[str, Launcher] = {}
        for kind in KINDS:
            loaded = load_engine(model, kind)  # type: ignore[arg-type]
            stack.callback(loaded.engine.close)
            launchers[kind] = await stack.enter_async_context(
                open_bare_launcher(
                    engine=loaded.engine,
                    tokenizer=loaded.tokenizer,
                    open_device=loaded.open_device,
                )
            )
            await launchers[kind].compile(make_program(PROGRAM))
        for guests in options.guests:
            for mode in ("stream", "stepwise"):
                await measure_pairs(launchers, guests, mode, options)


async def measure_pairs(
    launchers: dict[str, Launcher],
    guests: int,
    mode: str,
    options: argparse.Namespace,
) -> None:
    """Print one line for each kind."""
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    cpu: dict[str, list[float]] = {kind: [] for kind in KINDS}
    delays: dict[str, list[float]] = {kind: [] for kind in KINDS}
    run = partial(measure_guests, guests=guests, tokens=options.tokens)
    for round_ in range(options.repeats + 1):
        for kind in KINDS if round_ % 2 else KINDS[::-1]:
            found: list[float] = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch_loop, found)
                figure = await run(launchers[kind], stepwise=mode == "stepwise")
                nursery.cancel_scope.cancel()
            if round_:  # the first one warms up
                rates[kind].append(figure.per_second)
                cpu[kind].append(figure.cpu_us)
                delays[kind] += found
    ratio = statistics.median(
        b / a for a, b in zip(rates["thread"], rates["process"], strict=True)
    )
    for kind in KINDS:
        late = statistics.quantiles(delays[kind], n=100)
        print(
            f"  {guests:3d} {mode:9s} {kind:8s} {spread(rates[kind]):28s} tokens/s  "
            f"server CPU us a token {spread(cpu[kind]):26s} loop late ms: "
            f"median {late[49]:.2f}, 99 % {late[98]:.2f}, most {max(delays[kind]):.1f}"
        )
    print(f"      process / thread {ratio:.2f}; load {os.getloadavg()[0]:.1f}")


async def watch_loop(delays: list[float]) -> None:
    """Note how late the loop wakes a task, in milliseconds."""
    while True:
        due = trio.current_time() + NAP_SECONDS
        await trio.sleep_until(due)
        delays.append((trio.current_time() - due) * 1e3)


if __name__ == "__main__":
    trio.run(main)
