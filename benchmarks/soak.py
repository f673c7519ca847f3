"""A real server under mixed load for twenty minutes: does it grow, leak or fail?

    python -m benchmarks.soak --minutes 20

The load (``_soak_load.py``) is completions, agents whose tool answers over loopback, uploads,
WebSockets, detached instances, children, clients that leave or read slowly, hostile programs and
requests. A fifth of the time warms up: then caches, pools and rings of traces are full. The rest
are rounds; between two of them all clients vanish at once, and once nothing runs any more the
server is looked at. What it has then that it had not after the warm-up, it has leaked.

The run fails if the Pss of the server or of its engine has grown by more than 5 %, if there are more
descriptors, threads, tasks or instances than at the start, if a KV page belongs to nobody, or if
something came of the load that should not. soak.json, soak.md and soak.png go into
``benchmarks/results/DATE``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import signal
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from benchmarks._soak_load import WORKS, Load, unexpected
from benchmarks.harness import describe_machine
from benchmarks.peers import Starter, family, free_port
from benchmarks.reporting import RESULTS
from benchmarks.serving import open_tool
from pie_trio.client import Client
from pie_trio.client.errors import RemoteError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

SAMPLE_SECONDS = 2.0
START_SECONDS = 120.0
STOP_SECONDS = 60.0
SETTLE_SECONDS = 12.0
"""trio's idle threads end after ten; so do connections that the load has left."""
PATIENCE_SECONDS = 45.0
MAX_GROWTH = 0.05
MIB = 1 << 20
COUNTS = ("descriptors", "threads", "tasks", "instances", "commands", "lost pages")


@dataclass(slots=True)
class Sample:
    """What the server has at a moment.

    Attributes:
        at: Seconds since the load began.
        memory: Pss in bytes by process: ``server``, ``engine``, and others by module.
        counts: By name; see ``COUNTS``, and ``pages`` that are in use.
    """

    at: float
    memory: dict[str, int]
    counts: dict[str, int]


@dataclass(slots=True)
class Soak:
    """A run.

    Attributes:
        process: The server's.
        load: On it.
        rests: Samples while nothing ran: after the warm-up, and after each round.
        samples: Samples under load.
        num_warm: Of the latter, before the warm-up was over.
    """

    process: subprocess.Popen[str]
    load: Load
    rests: list[Sample] = field(default_factory=list[Sample])
    samples: list[Sample] = field(default_factory=list[Sample])
    num_warm: int = 0

    async def run(self, warm_seconds: float, rounds: int, round_seconds: float) -> None:
        """Let the load run, and rest after each round."""
        await self.wait_ready()
        await self.load.deploy()
        self.load.began = trio.current_time()
        await self._work(warm_seconds)
        self.num_warm = len(self.samples)
        self.load.tallies.clear()
        self.rests.append(await self._rest())
        for _ in range(rounds):
            await self._work(round_seconds)
            self.rests.append(await self._rest())

    async def wait_ready(self) -> None:
        """Wait until the server serves."""
        with trio.fail_after(START_SECONDS):
            async with Client(self.load.url) as client:
                while self.process.poll() is None:
                    try:
                        await client.health()
                    except RemoteError:
                        await trio.sleep(0.2)
                    else:
                        return
        raise RuntimeError("the server has ended before it was ready")

    async def _work(self, seconds: float) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            await self.load.run(seconds)
            nursery.cancel_scope.cancel()

    async def _watch(self) -> None:
        """Take samples until cancelled."""
        while True:
            await trio.sleep(SAMPLE_SECONDS)
            self.samples.append(await self._sample())

    async def _rest(self) -> Sample:
        """End what was detached, wait until nothing goes on, and return what is left."""
        async with Client(self.load.url) as client:
            for status in await client.instances():
                if status.state == "running":
                    await client.instance(status.instance_id).cancel()
        await trio.sleep(SETTLE_SECONDS)
        sample = await self._sample(is_resting=True)
        with trio.move_on_after(PATIENCE_SECONDS):
            while self.rests and worse(self.rests[0], sample, COUNTS):
                await trio.sleep(1)
                sample = await self._sample(is_resting=True)
        show(sample)
        return sample

    async def _sample(self, *, is_resting: bool = False) -> Sample:
        if self.process.poll() is not None:
            raise RuntimeError(f"the server has ended with {self.process.returncode}")
        async with Client(self.load.url) as client:
            found = read_metrics(await client.metrics())
            folder = Path(f"/proc/{self.process.pid}")
            counts = {
                "descriptors": len(list((folder / "fd").iterdir())),
                "threads": len(list((folder / "task").iterdir())),
                "tasks": found["pie_tasks"],
                "instances": found["pie_instances_running"],
                "commands": found["pie_commands_unfinished"],
                "pages": found["pie_pages,used"],
                "evictions": found["pie_evictions_total"],
            }
            if is_resting:
                exports = await client.call("exports")
                counts["exports"] = len(exports)
                counts["lost pages"] = counts["pages"] - sum(n for _, n in exports)
        at = trio.current_time() - self.load.began
        return Sample(at, memory_of(self.process.pid), counts)


def read_metrics(text: str) -> dict[str, int]:
    """Return metrics of the one model by name, and by name and state."""
    found = dict[str, int]()
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        state = name.partition('state="')[2].partition('"')[0]
        if not line.startswith("#"):
            key = name.partition("{")[0] + (f",{state}" if state else "")
            found[key] = int(float(value))
    return found


def memory_of(pid: int) -> dict[str, int]:
    """Return the Pss of a server's processes in bytes."""
    found = dict[str, int]()
    for one in family(pid):
        try:
            words = Path(f"/proc/{one}/cmdline").read_text().split("\0")
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text()
        except OSError:  # it has just ended
            continue
        name = next((w for w in words if w.endswith(".worker")), "server")
        name = "engine" if ".engines." in name else name.rpartition("application.")[2]
        pss = sum(
            int(line.split()[1]) for line in rollup.splitlines() if line[:4] == "Pss:"
        )
        found[name] = found.get(name, 0) + 1024 * pss
    return found


def worse(start: Sample, end: Sample, names: Sequence[str]) -> list[str]:
    """Return which counts are higher in the end, in words."""
    return [
        f"{name}: {start.counts[name]} after the warm-up, {end.counts[name]} in the end"
        for name in names
        if end.counts[name] > start.counts[name]
    ]


def judge(soak: Soak) -> list[str]:
    """Return what is wrong, in words."""
    start, end = soak.rests[0], soak.rests[-1]
    wrong = worse(start, end, COUNTS)
    if lost := start.counts["lost pages"]:
        wrong.append(f"{lost} pages belonged to nobody after the warm-up")
    for name in ("server", "engine"):
        growth = end.memory[name] / start.memory[name] - 1
        if growth > MAX_GROWTH:
            wrong.append(f"the memory of the {name} has grown by {100 * growth:.1f} %")
    for work, found in unexpected(soak.load.tallies).items():
        wrong += [f"{work}: {outcome}: {text}" for outcome, text in found.items()]
    wrong += [
        f"{name}: nothing was done" for name in WORKS if name not in soak.load.tallies
    ]
    return wrong


def complaints(log: str) -> list[str]:
    """Return what a server has told since it serves, but for its stop."""
    lines = log.partition("\non http")[2].splitlines()[1:]
    return [line for line in lines if not line.startswith("pie: SIGTERM")]


def show(sample: Sample) -> None:
    memory = ", ".join(f"{k} {v / MIB:.1f} MiB" for k, v in sample.memory.items())
    counts = ", ".join(f"{name} {count}" for name, count in sample.counts.items())
    print(f"{sample.at:7.0f} s  {memory}; {counts}", flush=True)


# ---- what is left behind -----------------------------------------------------------------


def report(soak: Soak, wrong: Sequence[str], command: str) -> None:
    """Write soak.json, soak.md and, where there is matplotlib, soak.png; print the tables."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    folder = RESULTS / today
    folder.mkdir(parents=True, exist_ok=True)
    lines = [*rest_table(soak), "", *work_table(soak), ""]
    lines += [f"- {text}" for text in wrong] or ["Nothing grew, leaked or failed."]
    machine = describe_machine().partition("; command")[0]
    head = [f"## {today}: soak", "", f"Machine {machine}. `{command}`", ""]
    (folder / "soak.md").write_text("\n".join([*head, *lines, ""]))
    content: dict[str, Any] = {
        "machine": machine,
        "command": command,
        "wrong": wrong,
        "rests": [asdict(sample) for sample in soak.rests],
        "samples": [asdict(sample) for sample in soak.samples],
        "num_warm": soak.num_warm,
        "works": {
            name: {"outcomes": tally.outcomes, "seconds": tally.seconds}
            for name, tally in soak.load.tallies.items()
        },
    }
    (folder / "soak.json").write_text(json.dumps(content) + "\n")
    print("\n".join(lines))
    try:
        plot(soak, folder / "soak.png")
    except ModuleNotFoundError as error:
        print(f"no plot: {error}; install the dependency group `bench`")
    print(f"see {folder}")


def rest_table(soak: Soak) -> list[str]:
    """Return what the server had while nothing ran."""
    start, end = soak.rests[0], soak.rests[-1]
    heads = ("while nothing runs", "after the warm-up", "in the end", "")
    lines = [f"| {' | '.join(heads)} |", "| --- " * 4 + "|"]
    for name in start.memory | end.memory:
        first, last = start.memory.get(name, 0), end.memory.get(name, 0)
        growth = f"{100 * (last / first - 1):+.1f} %" if first else ""
        sizes = [f"{first / MIB:.1f}", f"{last / MIB:.1f}", growth]
        cells = [f"{name}, Pss in MiB", *sizes]
        lines.append(f"| {' | '.join(cells)} |")
    for name, first in start.counts.items():
        lines.append(f"| {name} | {first} | {end.counts[name]} | |")
    return lines


def work_table(soak: Soak) -> list[str]:
    """Return how often each work was done, how long it took, and what else came of it."""
    lines = ["| work | ok | p50, s | p99, s | else |", "| --- " * 5 + "|"]
    for name, tally in soak.load.tallies.items():
        others = [f"{k} {n}" for k, n in tally.outcomes.most_common() if k != "ok"]
        cells = [name, f"{tally.outcomes['ok']}", f"{tally.quantile(0.5):.2f}"]
        cells += [f"{tally.quantile(0.99):.2f}", ", ".join(others)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def plot(soak: Soak, path: Path) -> None:
    """Draw memory, counts and latencies over the time.

    Raises:
        ModuleNotFoundError: There is no matplotlib.
    """
    import_module("matplotlib").use("Agg")  # no display
    pyplot: Any = import_module("matplotlib.pyplot")
    figure, (memory, counts, latency) = pyplot.subplots(3, figsize=(9, 10), sharex=True)
    for all_samples, style in ((soak.samples, "-"), (soak.rests, "o")):
        times = [sample.at / 60 for sample in all_samples]
        suffix = "" if style == "-" else ", nothing runs"
        for name in ("server", "engine"):
            values = [sample.memory.get(name, 0) / MIB for sample in all_samples]
            memory.plot(times, values, style, label=name + suffix, lw=1)
        for name in ("descriptors", "threads", "tasks", "instances", "pages"):
            values = [sample.counts[name] for sample in all_samples]
            label = name if style == "-" else None
            counts.plot(times, values, style, label=label, lw=1, ms=3)
        counts.set_prop_cycle(None)  # the same colours again
    for name in ("completion", "agent", "WebSocket", "upload"):
        done = soak.load.tallies[name].seconds
        latency.plot(*_points(done), ".", ms=2, label=name)
    for axes, label in (
        (memory, "Pss, MiB"),
        (counts, "count"),
        (latency, "seconds"),
    ):
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
        axes.axvline(soak.rests[0].at / 60, color="grey", ls=":")
    counts.set_yscale("log")
    latency.set_yscale("log")
    memory.set_ylim(bottom=0)
    latency.set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _points(done: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [at / 60 for at, _ in done], [seconds for _, seconds in done]


# ---- the run -----------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pages", type=int, default=512, help="KV pages of the server")
    options = parser.parse_args()
    seconds = 60 * options.minutes
    warm = seconds / 5
    command = f"python -m benchmarks.soak --minutes {options.minutes:g}"
    with tempfile.TemporaryDirectory(prefix="soak-") as name, ExitStack() as stack:
        folder, port = Path(name), free_port()
        tools = stack.enter_context(open_tool(0.05))
        command_line: list[object] = [
            *[sys.executable, "-m", "pie_trio", "serve", "--port", port],
            *["--data-dir", folder / "data", "--kv-pages", options.pages],
            *["--allow-http", tools.removeprefix("http://")],
        ]
        starter = Starter(folder, stack)
        # What compiling takes stays with the process for a while: the first one may have to.
        first = Soak(starter.start("first", command_line, PIE_MODEL=""), Load(port))
        trio.run(first.wait_ready)
        first.process.terminate()
        first.process.wait(STOP_SECONDS)
        process = starter.start("pie", command_line, PIE_MODEL="")
        load = Load(port, tools, random.Random(options.seed))
        soak = Soak(process, load)
        log = folder / "pie.log"
        try:
            trio.run(soak.run, warm, options.rounds, (seconds - warm) / options.rounds)
        except BaseException:
            print(log.read_text(), file=sys.stderr)
            raise
        process.send_signal(signal.SIGTERM)
        wrong = judge(soak)
        if code := process.wait(STOP_SECONDS):
            wrong.append(f"the server has ended with {code} after SIGTERM")
        if told := complaints(log.read_text()):
            wrong.append(f"the server has told: {' / '.join(told[:20])}")
        report(soak, wrong, command)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
