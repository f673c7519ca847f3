"""One run of a program in a test: in Wasm or natively, and what can be seen of it afterwards."""

from __future__ import annotations

import json
import random
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import trio

from pie_trio.application.authoring.projects import Project
from pie_trio.application.lifecycle.instances import (
    link_component,
    link_language,
    open_launcher,
)
from pie_trio.application.lifecycle.programs import ComponentProgram
from pie_trio.application.run.command import LOCAL_GRANTS
from pie_trio.application.run.setup import prepare_component, prepare_language
from pie_trio.application.services import Services, open_services
from pie_trio.application.serving import LoadedEngine, open_models
from pie_trio.application.wasm.compile_cache import CompileCache
from pie_trio.application.wasm.runtime import WasmRuntime
from pie_trio.config import ControlConfig, InstanceLimits, WasmConfig

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
    from pathlib import Path

    from pie_trio.application.authoring.manifest import Manifest
    from pie_trio.application.authoring.packing import PackedProgram
    from pie_trio.application.host.instance_log import LogLine
    from pie_trio.application.host.session import Session
    from pie_trio.application.lifecycle.instances import Launcher
    from pie_trio.application.lifecycle.programs import Program
    from pie_trio.application.recording.player import Player
    from pie_trio.application.recording.recorder import Recorder
    from pie_trio.application.wasm.linking import HostInterface
    from pie_trio.application.wasm.runtime import LinkedComponent
    from pie_trio.control.outbox import Message
    from pie_trio.control.served_model import ServedModel

__all__ = ["Order", "Outcome", "Sandbox", "collect", "open_world", "run_in_sandbox"]

Mode = Literal["wasm", "native"]
SLICE_TICKS = 1 << 20
"""Guests in tests are not preempted: how busy the machine is must not change a run."""
PATIENT = "rendezvous:0.5,3599"
"""For the same reason batches wait, in virtual time, for all who are about to submit."""
PATIENT_FOR_REAL = "rendezvous:0.5,1"
"""With an engine that takes real time, they wait for each of them up to a second."""


@dataclass
class Outcome:
    """What can be seen of a run.

    Attributes:
        result: What the program returned, as JSON has it.
        messages: What it sent, in order.
        output: What it printed and logged, a line each.
        seconds: How long it took on the run's own clock, which is virtual with a script.
        batch_sizes: Forwards in each step of the device.
        counts: ``steps``, ``forwards`` and ``tokens`` of the default model, and commands by
            how they ended: ``ok``, or the class of the error.
    """

    result: Any = None
    messages: list[Message] = field(default_factory=list["Message"])
    output: list[str] = field(default_factory=list[str])
    seconds: float = 0.0
    batch_sizes: list[int] = field(default_factory=list[int])
    counts: Counter[str] = field(default_factory=Counter[str])

    def note_line(self, line: LogLine) -> None:
        """Append a line of the log."""
        is_printed = line.source in ("stdout", "stderr")
        self.output.append(line.text if is_printed else f"[{line.source}] {line.text}")

    def note_models(self, models: Mapping[str, ServedModel]) -> None:
        """Take over the traces of the models."""
        for model in models.values():
            trace = model.batcher.trace
            forwards = [step for step in trace.steps if step.kind == "FORWARD"]
            self.batch_sizes += [step.size for step in forwards]
            self.counts["steps"] += len(forwards)
            self.counts["forwards"] += sum(step.size for step in forwards)
            self.counts["tokens"] += sum(step.num_tokens for step in forwards)
            self.counts.update(command.outcome for command in trace.commands)


@dataclass(frozen=True)
class Order:
    """What is to be run.

    Attributes:
        path: Of the program.
        found: The program there.
        manifest: What it says of itself.
        arguments: By name.
        messages: What the client sends it.
        engines: Of the models; none for a replay.
        programs: What it may launch by name.
        seed: Of random numbers.
        tap: Between the program and its host.
        adapt: Puts it there.
        has_terminal: What it prints natively goes to stderr, so that a debugger can ask.
    """

    path: Path
    found: Project | PackedProgram
    manifest: Manifest
    arguments: Mapping[str, Any]
    messages: Sequence[Message]
    engines: Sequence[LoadedEngine]
    programs: Mapping[str, Program]
    seed: int
    tap: Recorder | Player | None
    adapt: Callable[[list[HostInterface]], list[HostInterface]]
    has_terminal: bool = False

    @property
    def limits(self) -> InstanceLimits:
        """What the program may use."""
        return self.manifest.limits.below(InstanceLimits())


class _SeededRandom:
    """Random bytes that are the same in each run."""

    def __init__(self) -> None:
        self._generator = random.Random(0)

    def __call__(self, count: int) -> bytes:
        return self._generator.randbytes(count)

    def seed(self, seed: int) -> None:
        self._generator.seed(seed)


class Sandbox:
    """Wasm for all tests of a session: made when it is first needed.

    Args:
        slice_ticks: After so many ticks a guest that computes lets others go on. Fewer are for
            tests of guests without end.
        cache_directory: Where what was compiled is kept; None for the usual place.

    Attributes:
        seed: Sets where the random bytes of guests begin.
    """

    def __init__(
        self,
        *,
        slice_ticks: int = SLICE_TICKS,
        cache_directory: Path | None = None,
    ) -> None:
        config = replace(WasmConfig(), slice_ticks=slice_ticks)
        directory = cache_directory or config.cache_directory
        self._config = replace(config, cache_directory=directory)
        self._runtime: WasmRuntime | None = None
        self._random = _SeededRandom()
        self.seed = self._random.seed

    def link(self, order: Order) -> LinkedComponent:
        """Return the component that runs a program, with the order's host functions. Blocks."""
        packed = order.path if order.path.suffix == ".wasm" else None
        if packed is not None:
            path = prepare_component(self._config, packed)
        else:
            path = prepare_language(self._config)
        if self._runtime is None:
            cache = CompileCache(self._config.cache_directory)
            self._runtime = WasmRuntime(self._config, cache).__enter__()
        link = link_language if packed is None else link_component
        return link(self._runtime, path, adapt=order.adapt, random_bytes=self._random)

    def close(self) -> None:
        """Let everything go."""
        if self._runtime is not None:
            self._runtime.__exit__(None, None, None)
            self._runtime = None


def make_control(order: Order) -> ControlConfig:
    """Return how batches are made: with a fake engine, in the loop's own thread.

    No step is ever one too many, so that what was used is the same in each run.
    """
    is_virtual = all(engine.engine.info.name == "scripted" for engine in order.engines)
    if not is_virtual:
        return ControlConfig(policy=PATIENT_FOR_REAL, goes_ahead=False)
    return ControlConfig(policy=PATIENT, has_device_thread=False, goes_ahead=False)


@asynccontextmanager
async def open_world(order: Order) -> AsyncGenerator[Services]:
    """Offer a program everything that it may ask for, with the store in memory."""
    async with (
        open_models(order.engines, make_control(order), order.limits) as models,
        open_services(models, programs=order.programs) as services,
    ):
        yield services


async def run_in_sandbox(
    order: Order,
    linked: LinkedComponent,
    seed: Callable[[int], None],
    outcome: Outcome | None = None,
) -> Outcome:
    """Run a program in Wasm.

    Args:
        order: What is to be run.
        linked: What runs it.
        seed: Sets where its random bytes begin.
        outcome: Is filled; None for a new one.

    Raises:
        InferletError: It failed.
    """
    outcome = outcome or Outcome()
    program: Program
    if isinstance(order.found, Project):
        program = order.found.program
    else:
        program = ComponentProgram(order.found.name, linked, order.found.digest)
    async with (
        open_world(order) as services,
        open_launcher(linked, services, order.limits) as launcher,
    ):
        await launcher.compile(program)
        seed(order.seed)  # a guest takes 16 bytes when it starts: see the native run
        await _run_instance(launcher, program, order, outcome)
        outcome.note_models(services.models)
    return outcome


async def _run_instance(
    launcher: Launcher, program: Program, order: Order, outcome: Outcome
) -> None:
    http = order.manifest.grants.http if order.manifest.grants else ()
    grants = order.manifest.granted(replace(LOCAL_GRANTS, http=http))
    instance = launcher.prepare(
        program, order.arguments, on_log=outcome.note_line, grants=grants
    )
    if order.tap is not None:
        order.tap.host = instance.session
    async with collect(instance.session, order.messages, outcome):
        outcome.result = json.loads(await instance.run())


@asynccontextmanager
async def collect(
    session: Session, messages: Sequence[Message], outcome: Outcome
) -> AsyncGenerator[None]:
    """Be the client of a session in the block; it takes all that comes, and has sent all."""

    async def drain() -> None:
        while taken := await session.outbox.take():
            outcome.messages.extend(taken)

    async def feed() -> None:
        for message in messages:
            if not await session.inbox.put(message):
                return
        session.inbox.end()

    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain)
        nursery.start_soon(feed)
        try:
            yield
        finally:
            outcome.seconds = trio.current_time() - started
