"""What a host call costs: answered at once, suspended and resumed, and through the batcher.

    python -m benchmarks.run calls --rounds 3
    python -m benchmarks.calls --calls 5000 --inferlets 1 8 32 128

The first keeps what it finds, the second prints it, with a forward beside an endless loop. The
engine answers at once. A call's wall time is what the guest sees; with several inferlets it is
divided by their number. CPU is that of the process less the engine's, the host's and the guest's
apart. The paper's figure 10 has control-layer calls below 30 us and inference-layer calls of 10 to
300 us.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from benchmarks.harness import (
    describe_machine,
    make_parser,
    make_program,
    open_bare_launcher,
    spread,
)
from benchmarks.host_clock import HostClock, open_host_clock
from benchmarks.pairing import take_turns
from benchmarks.reporting import Metric, Report
from pie_trio.application.host.interfaces import (
    make_interfaces,
    make_source_interface,
)
from pie_trio.application.lifecycle.instances import link_language
from pie_trio.application.waiting import Waiting

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from benchmarks.pairing import Point, Series, Side
    from pie_trio.application.lifecycle.instances import Launcher
    from pie_trio.application.wasm.linking import HostInterface
    from pie_trio.application.wasm.runtime import LinkedComponent, WasmRuntime

PROGRAM = """
import time
from inferlet_py import Context, Greedy, inferlet
from inferlet_py._host import get_host

@inferlet
async def main(calls: int) -> list[float]:
    host, greedy = get_host(), Greedy()
    context = Context()
    await context.forward([1, 2], top=1)
    samples = []
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(calls // 20):
            CALL
        context.truncate(2)
        samples.append((time.perf_counter() - start) / (calls // 20) * 1e6)
    return samples
"""
ONE = {
    "the loop alone": "pass",
    "answered at once: now()": "host.now()",
    "answered at once: detokenize 8 tokens": "host.detokenize('', [65] * 8)",
}
SUSPEND = "host.finish(0)"
SPINNER = make_program(
    "from inferlet_py import inferlet, log\n"
    "@inferlet\n"
    "async def main() -> None:\n"
    "    log('spins')\n"
    "    while True: pass\n"
)
FORWARD = "await context.forward([1], top=1)"
"""As a loop that decodes: each token after the last one's."""
SAMPLE = "context.append([await context.sample(greedy)])"
DECODING = {"a distribution": FORWARD, "a sample": SAMPLE}


SUSPENDS = "suspends and resumes"
METRICS = (
    Metric("wall", "us", "less"),
    Metric("CPU, host", "us", "less"),
    Metric("CPU, guest", "us", "less"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add how many calls are made, and by how many at once."""
    parser.add_argument("--calls", type=int, default=4000, help="by all together")
    parser.add_argument(
        "--inferlets", type=int, nargs="+", default=[1, 8, 32, 128], help="that forward"
    )


def measure(options: argparse.Namespace) -> Report:
    """Measure each kind of call, those through the batcher with each number of inferlets."""
    return Report(
        title="host calls, over an engine that answers at once",
        metrics=METRICS,
        series=trio.run(_take_turns, options),
        base="",
        x="call",
        notes=["Wall time is divided by the number of inferlets."],
    )


async def _take_turns(options: argparse.Namespace) -> list[Series]:
    points: list[Point] = [{"call": name, "at once": 1} for name in [*ONE, SUSPENDS]]
    points += [
        {"call": f"{what}, one token", "at once": count}
        for what in DECODING
        for count in options.inferlets
    ]
    sides: dict[str, Side] = {"Pie": partial(_measure_point, options.calls)}
    return await take_turns(sides, points, rounds=options.rounds)


async def _measure_point(calls: int, point: Point) -> dict[str, float]:
    name, count = str(point["call"]), int(point["at once"])
    forwards = {f"{what}, one token": call for what, call in DECODING.items()}
    call = {**ONE, SUSPENDS: SUSPEND, **forwards}[name]
    link = link_suspending if name == SUSPENDS else link_language
    calls = max(calls // count, 40)
    async with open_bare_launcher(link=link) as launcher:
        samples = await measure_wall(launcher, call, calls=calls, count=count)
    with open_host_clock() as clock:
        async with open_bare_launcher(link=link) as launcher:
            for model in launcher.models.values():
                clock.watch_engine(model.batcher.engine)
            host, guest = await measure_cpu(
                launcher, clock, call, calls=calls, count=count
            )
    wall = statistics.median(samples) / count
    return {"wall": wall, "CPU, host": host, "CPU, guest": guest}


def link_suspending(runtime: WasmRuntime, path: Path) -> LinkedComponent:
    """Link the language component with a ``finish`` that does nothing but suspend.

    The guest suspends, its task goes once around trio's loop, and the guest resumes.
    """
    interfaces = [*make_interfaces(), make_source_interface(_has, _get)]
    return runtime.link(runtime.compile(path), [*map(_suspending, interfaces)])


def _has(host: Any) -> bool:
    return bool(host.has_program())


def _get(host: Any) -> Any:
    return host.get_program()


def _suspending(interface: HostInterface) -> HostInterface:
    finish = interface.functions.get("finish")
    if finish is None:
        return interface
    call = replace(finish, call=lambda *_: Waiting(trio.lowlevel.checkpoint))
    return replace(interface, functions={**interface.functions, "finish": call})


async def measure_wall(
    launcher: Launcher, call: str, *, calls: int, count: int
) -> list[float]:
    """Return microseconds a call, of ``count`` inferlets at once."""
    program = make_program(PROGRAM.replace("CALL", call))
    await launcher.compile(program)
    samples: list[float] = []

    async def one() -> None:
        result = await launcher.prepare(program, {"calls": calls}).run()
        samples.extend(json.loads(result))

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)
    return samples


async def measure_cpu(
    launcher: Launcher, clock: HostClock, call: str, *, calls: int, count: int
) -> tuple[float, float]:
    """Return microseconds of CPU a call, the host's and the guest's, with the launches taken off."""
    seconds: list[tuple[float, float]] = []
    for each in (calls, 4 * calls):
        clock.start()
        await measure_wall(launcher, call, calls=each, count=count)
        seconds.append((clock.host_seconds(), clock.guest_seconds()))
    num_calls = 3 * calls * count
    host, guest = (
        (late - early) / num_calls * 1e6
        for early, late in zip(seconds[0], seconds[1], strict=True)
    )
    return host, guest


async def measure_beside_spinner(launcher: Launcher, *, calls: int) -> list[float]:
    """Return microseconds a forward while another inferlet computes without end."""
    spins = trio.Event()
    spinner = launcher.prepare(SPINNER, {}, on_log=lambda _: spins.set())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(spinner.run)
        await spins.wait()
        samples = await measure_wall(launcher, FORWARD, calls=calls, count=1)
        nursery.cancel_scope.cancel()
    return samples


async def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--inferlets", type=int, nargs="+", default=[1, 8, 32, 128])
    options = parser.parse_args()
    print(describe_machine())
    async with open_bare_launcher(link=link_suspending) as launcher:
        samples = await measure_wall(launcher, SUSPEND, calls=options.calls, count=1)
        print(f"  {'suspends and resumes':42s} us {spread(samples)}")
    async with open_bare_launcher() as launcher:
        for name, call in ONE.items():
            samples = await measure_wall(launcher, call, calls=options.calls, count=1)
            print(f"  {name:42s} us {spread(samples)}")
        for count in options.inferlets:
            calls = max(options.calls // count, 40)
            for what, call in DECODING.items():
                samples = await measure_wall(launcher, call, calls=calls, count=count)
                each = statistics.median(samples) / count
                name = f"{what} of one token, {count} inferlets"
                print(f"  {name:42s} us {spread(samples)}, {each:.1f} for each")
    with open_host_clock() as clock:
        async with open_bare_launcher() as launcher:
            for model in launcher.models.values():
                clock.watch_engine(model.batcher.engine)
            for count in options.inferlets:
                calls = max(options.calls // count, 40)
                for what, call in DECODING.items():
                    host, guest = await measure_cpu(
                        launcher, clock, call, calls=calls, count=count
                    )
                    name = f"CPU of the host, {what}, {count} inferlets"
                    print(
                        f"  {name:42s} us {host:.1f} for each, the guest's {guest:.1f}"
                    )
    async with open_bare_launcher() as launcher:
        samples = await measure_beside_spinner(launcher, calls=options.calls // 4)
        name = "a forward of one token, beside an endless loop"
        print(f"  {name:42s} us {spread(samples)}")


if __name__ == "__main__":
    trio.run(main)
