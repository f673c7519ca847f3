"""What programmability costs a token: the bare engine, streams and stepwise, layer by layer.

    python -m benchmarks.run overhead --models MODELS/rand-60m MODELS/rand-500m --guests 1 8 32

The engine alone runs one batch of as many sequences in a loop. Of the stepwise side the trace tells
where the time of a token goes; medians of all tokens but the first.

- guest: from one token's result to the next forward: the guest, and crossing the layers.
- waiting: from there to the step that takes it.
- device: from there to the result: the step, and the way to the device's thread and back.
"""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from benchmarks.harness import make_program, open_bare_launcher
from benchmarks.pairing import take_turns
from benchmarks.reporting import Metric, Report
from benchmarks.streams import PROGRAM, measure_engine, measure_guests
from pie_trio.application.run.setup import default_model, load_engine
from pie_trio.config import ModelConfig

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from benchmarks.pairing import Point, Series, Side
    from pie_trio.application.lifecycle.instances import Launcher
    from pie_trio.control.trace import CommandRecord
    from pie_trio.engine_api import Engine

LAYERS = ("guest", "waiting", "device")
METRICS = (
    Metric("token", "ms"),
    Metric("CPU", "ms a token"),
    *(Metric(layer, "ms") for layer in LAYERS),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the models and the numbers of guests."""
    parser.add_argument(
        "--models", type=Path, nargs="*", default=[], help="pie-tiny without"
    )
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--guests", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--new", type=int, default=128, help="tokens to generate")


def measure(options: argparse.Namespace) -> Report:
    """Measure each model with each number of guests."""
    series: list[Series] = []
    for path in options.models or [None]:
        config = default_model()
        if path is not None:
            config = ModelConfig(path, path.name, dtype=options.dtype)
        series += trio.run(_measure_model, config, options)
    return Report(
        title="time of a token: engine, stream, stepwise",
        metrics=METRICS,
        series=series,
        base="engine",
        x="guests",
        settings={"new tokens": options.new, "dtype": options.dtype},
        notes=[
            "`engine / it` of `token` is the share of the bare engine's speed that is left."
        ],
    )


async def _measure_model(
    config: ModelConfig, options: argparse.Namespace
) -> list[Series]:
    loaded = load_engine(config)
    points: list[Point] = [
        {"model": config.name, "guests": count} for count in options.guests
    ]
    async with open_bare_launcher(
        engine=loaded.engine, tokenizer=loaded.tokenizer
    ) as launcher:
        await launcher.compile(make_program(PROGRAM))
        sides: dict[str, Side] = {
            "engine": partial(_run_engine, loaded.engine, options.new),
            "stream": partial(_run_guests, launcher, options.new, False),
            "stepwise": partial(_run_guests, launcher, options.new, True),
        }
        return await take_turns(sides, points, rounds=options.rounds)


async def _run_engine(engine: Engine, num_new: int, point: Point) -> dict[str, float]:
    figure = measure_engine(engine, guests=int(point["guests"]), tokens=num_new)
    step = int(point["guests"]) / figure.per_second * 1000
    return {"token": step, "CPU": figure.cpu_us / 1000}


async def _run_guests(
    launcher: Launcher, num_new: int, stepwise: bool, point: Point
) -> dict[str, float]:
    count = int(point["guests"])
    (model,) = launcher.models.values()
    began = trio.current_time()
    figure = await measure_guests(
        launcher, guests=count, tokens=num_new, stepwise=stepwise
    )
    found = {"token": count / figure.per_second * 1000, "CPU": figure.cpu_us / 1000}
    if stepwise:
        found |= split(model.batcher.trace.commands_after(began))
    return found


def split(records: Sequence[CommandRecord]) -> dict[str, float]:
    """Return the milliseconds of a token in each layer: the medians of all decode steps."""
    by_tenant: defaultdict[str, list[CommandRecord]] = defaultdict(list)
    for record in records:
        if record.kind == "FORWARD" and record.outcome == "ok":
            by_tenant[record.tenant].append(record)
    layers: defaultdict[str, list[float]] = defaultdict(list)
    for commands in by_tenant.values():
        commands.sort(key=lambda record: record.submitted_at)
        for last, record in itertools.pairwise(commands):
            layers["guest"].append(record.submitted_at - last.finished_at)
            layers["waiting"].append(record.batched_at - record.submitted_at)
            layers["device"].append(record.finished_at - record.batched_at)
    return {name: statistics.median(layers[name]) * 1000 for name in layers}
