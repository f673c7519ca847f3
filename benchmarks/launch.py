"""Launch inferlets: CPU and time from the request to the first host call, memory, leaks.

    python -m benchmarks.run launch --counts 1 100 896 --warm 100 --component
    python -m benchmarks.launch --counts 1 100 896 --warm 100 --repeat 1000

The first keeps what it finds, the second prints it, and looks for leaks.
The paper's figure 9: 896 at once in 10 to 50 ms on 32 cores, about 1.8 ms of a core each.
"""

from __future__ import annotations

import ctypes
import gc
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from benchmarks.harness import (
    describe_machine,
    make_parser,
    make_program,
    memory_bytes,
    open_bare_launcher,
    spread,
)
from benchmarks.pairing import take_turns
from benchmarks.reporting import Metric, Report
from pie_trio.application.authoring.building import build_component
from pie_trio.application.authoring.projects import load_project
from pie_trio.application.lifecycle.instances import link_component
from pie_trio.application.lifecycle.programs import (
    ComponentProgram,
    Program,
    SourceProgram,
)
from pie_trio.application.wasm.compile_cache import CompileCache
from pie_trio.application.wasm.runtime import WasmRuntime
from pie_trio.config import WasmConfig

if TYPE_CHECKING:
    import argparse

    from benchmarks.pairing import Point, Series, Side
    from pie_trio.application.host.instance_log import LogLine
    from pie_trio.application.lifecycle.instances import Launcher

# The first host call is the log line; then the guest waits until it is cancelled.
HOLD_TEXT = (
    "from inferlet_py import inferlet, log, sleep_until\n"
    "@inferlet\n"
    "async def main() -> None:\n"
    "    log('running')\n"
    "    await sleep_until(1e12)\n"
)
HOLD = make_program(HOLD_TEXT)
TRIVIAL = make_program(
    "from inferlet_py import inferlet\n@inferlet\nasync def main() -> int:\n    return 1\n"
)


METRICS = (
    Metric("until all run", "ms", "less"),
    Metric("CPU", "ms each", "less"),
    Metric("memory", "MB each", "less"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add how many are launched."""
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 8, 100, 896])
    parser.add_argument("--warm", type=int, default=100, help="most guests made ahead")
    parser.add_argument(
        "--component",
        action="store_true",
        help="also from a component of its own, which takes half a minute to be built",
    )


def measure(options: argparse.Namespace) -> Report:
    """Launch each number at once, from nothing and, where that is allowed, from guests made ahead."""
    with tempfile.TemporaryDirectory(prefix="launch-") as folder:
        component = _build(Path(folder)) if options.component else None
        series = trio.run(_take_turns, options, component)
    return Report(
        title="launches at once",
        metrics=METRICS,
        series=series,
        base="cold",
        x="at once",
        notes=["Each is launched by a fresh runtime, and runs at its first host call."],
        is_logarithmic=True,
    )


def _build(folder: Path) -> Path:
    """Build the program as a component, and compile it once: later it comes from the cache."""
    source, target = folder / "app.py", folder / "bench.wasm"
    source.write_text(HOLD_TEXT)
    build_component(load_project(source), target)
    wasm = WasmConfig()
    with WasmRuntime(wasm, CompileCache(wasm.cache_directory)) as runtime:
        link_component(runtime, target)
    return target


async def _take_turns(
    options: argparse.Namespace, component: Path | None
) -> list[Series]:
    found: list[Series] = []
    for count in options.counts:
        sides: dict[str, Side] = {"cold": partial(_launch, is_warm=False)}
        if count <= options.warm:
            sides["warm"] = partial(_launch, is_warm=True)
        if component is not None:
            sides["component"] = partial(_launch, is_warm=False, component=component)
        points: list[Point] = [{"at once": count}]
        found += await take_turns(sides, points, rounds=options.rounds)
    return found


async def _launch(
    point: Point, *, is_warm: bool, component: Path | None = None
) -> dict[str, float]:
    count = int(point["at once"])
    async with open_bare_launcher(num_warm=count if is_warm else 0) as launcher:
        program: Program = HOLD
        if component is not None:
            linked = link_component(launcher.runtime, component)
            program = ComponentProgram("bench", linked, "0" * 64)
        seconds, cpu, size = await measure_many(launcher, count, program)
    return {"until all run": seconds * 1000, "CPU": cpu, "memory": size}


async def measure_one(launcher: Launcher) -> tuple[float, float]:
    """Launch one; return CPU and wall milliseconds up to its first host call."""
    reached: list[tuple[float, float]] = []

    def on_log(_line: LogLine) -> None:
        reached.append((time.process_time(), time.perf_counter()))
        scope.cancel()

    await launcher.compile(HOLD)
    start = time.process_time(), time.perf_counter()
    with trio.CancelScope() as scope:
        await launcher.prepare(HOLD, {}, on_log=on_log).run()
    return (reached[0][0] - start[0]) * 1e3, (reached[0][1] - start[1]) * 1e3


async def measure_many(
    launcher: Launcher, count: int, program: Program = HOLD
) -> tuple[float, float, float]:
    """Launch ``count`` at once; return seconds until all run, CPU ms and MB of each."""
    num_running = 0
    ended = 0.0, 0.0, 0

    def on_log(_line: LogLine) -> None:
        nonlocal num_running, ended
        num_running += 1
        if num_running == count:
            ended = time.perf_counter(), time.process_time(), memory_bytes()
            nursery.cancel_scope.cancel()

    if isinstance(program, SourceProgram):
        await launcher.compile(program)
    gc.collect()
    started = time.perf_counter(), time.process_time(), memory_bytes()
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(launcher.prepare(program, {}, on_log=on_log).run)
    return (
        ended[0] - started[0],
        (ended[1] - started[1]) / count * 1e3,
        (ended[2] - started[2]) / count / 1e6,
    )


async def measure_leaks(launcher: Launcher, repeat: int) -> None:
    """Launch ``repeat`` in a row and compare memory, descriptors and pages."""
    for _ in range(200):
        await launcher.prepare(TRIVIAL, {}).run()
    (model,) = launcher.models.values()

    def state() -> tuple[float, int, int]:
        gc.collect()
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        return memory_bytes() / 1e6, descriptors, model.pool.num_free

    before = state()
    for _ in range(repeat):
        await launcher.prepare(TRIVIAL, {}).run()
    after = state()
    names = ("MB (proportional)", "descriptors", "free pages")
    for name, old, new in zip(names, before, after, strict=True):
        print(f"  {repeat} launches in a row: {name} {old:.1f} -> {new:.1f}")


async def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 100, 896])
    parser.add_argument("--warm", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=1000)
    options = parser.parse_args()
    print(describe_machine())
    for count in options.counts:
        if (
            count > 1
        ):  # of a fresh runtime: slots of earlier guests would count as free memory
            async with open_bare_launcher() as launcher:
                seconds, cpu, megabytes = await measure_many(launcher, count)
            print(
                f"{count} at once: all run after {seconds:.2f} s; "
                f"{cpu:.2f} ms of CPU and {megabytes:.2f} MB each"
            )
    async with open_bare_launcher() as launcher:
        samples = [await measure_one(launcher) for _ in range(60)][10:]
        print(
            f"one: CPU ms {spread([s[0] for s in samples])}, "
            f"wall ms {spread([s[1] for s in samples])}"
        )
        await measure_leaks(launcher, options.repeat)
    if options.warm:
        async with open_bare_launcher(num_warm=options.warm) as launcher:
            samples = [
                await measure_one(launcher) for _ in range(min(options.warm, 50))
            ]
        print(
            f"one, from {options.warm} warm guests: CPU ms {spread([s[0] for s in samples])}, "
            f"wall ms {spread([s[1] for s in samples])}"
        )


def trim() -> None:
    """Print what glibc keeps of the memory of guests that have ended."""
    gc.collect()
    before = memory_bytes() / 1e6
    ctypes.CDLL(None).malloc_trim(0)
    print(f"after all ended: {before:.0f} MB, {memory_bytes() / 1e6:.0f} MB trimmed")


if __name__ == "__main__":
    trio.run(main)
    trim()
