"""Run one program to its end with the terminal as its client."""

from __future__ import annotations

import gc
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import trio

from pie_trio.application.authoring.manifest import Manifest
from pie_trio.application.authoring.packing import PackedProgram, load_packed
from pie_trio.application.authoring.projects import load_project
from pie_trio.application.engines.loading import check_replicas
from pie_trio.application.engines.memory import RUN_KV_BYTES, size_models
from pie_trio.application.lifecycle.instances import (
    link_component,
    link_language,
    open_launcher,
)
from pie_trio.application.lifecycle.programs import ComponentProgram
from pie_trio.application.outgoing import parse_grant
from pie_trio.application.recording.programs import digest_of
from pie_trio.application.recording.recording import Recording
from pie_trio.application.run.arguments import parse_program_arguments
from pie_trio.application.run.console import (
    LogPrinter,
    MessagePrinter,
    run_abandonable,
)
from pie_trio.application.run.lines import feed_lines
from pie_trio.application.run.profiling import Profile
from pie_trio.application.run.setup import (
    load_engine,
    prepare_component,
    prepare_language,
)
from pie_trio.application.services import Grants, Services, open_services
from pie_trio.application.serving import LoadedEngine, open_models
from pie_trio.application.wasm.compile_cache import CompileCache
from pie_trio.application.wasm.runtime import LinkedComponent, WasmRuntime
from pie_trio.config import ControlConfig, InstanceLimits, ModelConfig, WasmConfig
from pie_trio.errors import CancelledError, InferletError

if TYPE_CHECKING:
    from collections.abc import (
        Awaitable,
        Callable,
        Generator,
        Mapping,
        Sequence,
    )
    from pathlib import Path

    from pie_trio.application.host.session import Session
    from pie_trio.application.lifecycle.programs import Program, SourceProgram
    from pie_trio.application.run.signals import Signals
    from pie_trio.application.wasm.linking import HostInterface

__all__ = [
    "LOCAL_GRANTS",
    "OUTPUT_SECONDS",
    "RunOptions",
    "first_leaf",
    "limits_of_ones_own",
    "load_engines",
    "run_in_wasm",
    "run_trio",
    "serve_terminal",
]

T = TypeVar("T")

OUTPUT_SECONDS = 0.5
"""For the last output of a program that was interrupted."""

LOCAL_GRANTS = Grants(logits=True, publish=True, topics=True)
"""Who runs a program on a server of their own may see everything in it."""


def limits_of_ones_own(limits: InstanceLimits) -> InstanceLimits:
    """Return limits without those that keep a server for others in the long run.

    What a program prints is what it is run for, and all of it is shown.
    """
    return replace(
        limits,
        log_bytes_per_second=None,
        max_log_bytes=None,
        max_http_requests=None,
        max_http_bytes=None,
    )


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What ``pie run`` was asked for.

    Attributes:
        program: A file or folder.
        arguments: The program's own, as on the command line.
        choose_models: Finds the models, once the program's arguments are known to be right;
            the first is the default.
        num_warm: Guests to instantiate ahead of time.
        allow_http: Hosts that the program may reach: see
            :mod:`pie_trio.application.outgoing`.
        store_path: Of the key-value store; None for one in memory.
        programs: What it may launch by name, besides itself.
        on_serving: Is told what is served, once it is.
        manifest: What the program says of itself.
        record_path: Where what enters the run is written; None for nowhere.
        profile_path: Where it is written who had the processor; None for nowhere.
    """

    program: Path
    arguments: Sequence[str]
    choose_models: Callable[[], Sequence[ModelConfig]]
    wasm: WasmConfig = field(default_factory=WasmConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    limits: InstanceLimits = field(default_factory=InstanceLimits)
    num_warm: int = 0
    allow_http: Sequence[str] = ()
    store_path: Path | None = None
    programs: Mapping[str, Path] = field(default_factory=dict[str, "Path"])
    on_serving: Callable[[Services], None] = lambda _: None
    manifest: Manifest = field(default_factory=Manifest)
    record_path: Path | None = None
    profile_path: Path | None = None

    def for_manifest(self, manifest: Manifest) -> RunOptions:
        """Return the options with what the program says of itself taken into account."""
        limits = manifest.limits.below(self.limits)
        return replace(self, manifest=manifest, limits=limits)

    def load_programs(self) -> dict[str, SourceProgram]:
        """Read the programs that may be launched by name, which are sent as source.

        Raises:
            ProgramError: One cannot be read.
        """
        return {
            name: load_project(path).program for name, path in self.programs.items()
        }

    def make_grants(self) -> Grants:
        """Return what the program may do.

        Raises:
            ConfigError: A host is none.
        """
        for text in self.allow_http:
            parse_grant(text)
        # Who runs a program of their own here grants what it says that it needs.
        named = self.manifest.grants.http if self.manifest.grants else ()
        offered = replace(LOCAL_GRANTS, http=(*named, *self.allow_http))
        return self.manifest.granted(offered)


def run_in_wasm(options: RunOptions, signals: Signals) -> None:
    """Run the program in the sandbox.

    Raises:
        PieError: Something is wrong with the model, the program or its arguments, or it failed.
        Interrupted: By Ctrl-C or SIGTERM.
        BrokenPipeError: Nobody reads the output any more.
        SystemExit: Usage of the program's own arguments was printed.
    """
    is_packed = options.program.suffix == ".wasm"
    found = load_packed(options.program) if is_packed else load_project(options.program)
    programs, options = options.load_programs(), options.for_manifest(found.manifest)
    grants = options.make_grants()
    language_path: Path | None = None
    with signals.phase():
        if isinstance(found, PackedProgram):
            prepare_component(options.wasm, found.path)
        if programs or not is_packed:
            language_path = prepare_language(options.wasm)
    recording, profile = Recording(options.record_path), Profile(options.profile_path)

    def adapt(interfaces: list[HostInterface]) -> list[HostInterface]:
        return profile.adapt(recording.adapt(interfaces))

    with (
        recording,
        profile,
        WasmRuntime(
            options.wasm, CompileCache(options.wasm.cache_directory)
        ) as runtime,
    ):
        profile.watch_guests(runtime)
        # What is sent as source runs in the language component, its children too.
        language = language_path and link_language(runtime, language_path, adapt=adapt)
        program: Program
        if isinstance(found, PackedProgram):
            linked = link_component(runtime, found.path, adapt=adapt)
            program = ComponentProgram(found.name, linked, found.digest)
            language = language or linked
        else:
            program = found.program
        assert language is not None, "it is prepared for all that is sent as source"
        with signals.left_to_trio():
            description = run_trio(_describe, language, program, options, signals)
        arguments = parse_program_arguments(
            description, options.arguments, program=f"pie run {options.program}"
        )
        models = options.choose_models()
        recording.open(options.program, digest_of(found), "wasm", models)
        with load_engines(models) as loaded:
            engines = profile.watch_engines(loaded)
            signals.check()
            gc.collect()
            gc.freeze()  # what is there now stays: collections need not look at it again
            with signals.left_to_trio():
                run_trio(
                    *(_run, language, program, arguments, options, engines, signals),
                    *(programs, grants, recording, profile),
                )


async def _describe(
    language: LinkedComponent,
    program: Program,
    options: RunOptions,
    signals: Signals,
) -> dict[str, Any]:
    async with (
        signals.watch(),
        open_launcher(language, Services(), options.limits) as launcher,
    ):
        instance = launcher.prepare(program, {})
        try:
            return await instance.describe()
        except InferletError:
            # Else the run prints these lines, which executes the module once more.
            log = LogPrinter()
            for line in instance.session.log.lines:
                log.add(line)
            log.close()
            await log.print_lines()
            raise


async def _run(
    language: LinkedComponent,
    program: Program,
    arguments: Mapping[str, Any],
    options: RunOptions,
    engines: Sequence[LoadedEngine],
    signals: Signals,
    programs: Mapping[str, SourceProgram],
    grants: Grants,
    recording: Recording,
    profile: Profile,
) -> None:
    profile.begin()
    async with (
        signals.watch(),
        open_models(engines, options.control, options.limits) as models,
        open_services(
            models, store_path=options.store_path, programs=programs
        ) as services,
        open_launcher(
            language, services, options.limits, num_warm=options.num_warm
        ) as launcher,
    ):
        options.on_serving(services)
        await launcher.compile(program)
        log = LogPrinter()
        instance = launcher.prepare(program, arguments, on_log=log.add, grants=grants)
        session = instance.session
        recording.watch(session)

        async def run() -> str:
            return recording.note(await instance.run())

        with signals.asking(
            lambda: session.stop(CancelledError("it was interrupted")),
            wait_seconds=session.limits.grace_seconds + OUTPUT_SECONDS,
        ):
            await serve_terminal(session, run, log)


@contextmanager
def load_engines(
    models: Sequence[ModelConfig],
    kind: Literal["thread", "process"] | None = None,
    *,
    default_kv_bytes: int | None = RUN_KV_BYTES,
) -> Generator[Sequence[LoadedEngine]]:
    """Load models, each engine as :func:`load_engine` does, and close them at the end.

    Args:
        models: The first is the default.
        kind: Where steps are computed; None for a thread, if that is possible.
        default_kv_bytes: The most that the KV cache of a model gets for which nothing was
            said; None for what there is.

    Raises:
        ConfigError: They do not fit the memory, or one cannot be used.
    """
    for model in models:
        check_replicas(model)
    with ExitStack() as stack:
        engines: list[LoadedEngine] = []
        for model in size_models(models, default_kv_bytes=default_kv_bytes):
            for replica in range(model.replicas):
                engines.append(load_engine(model, kind, replica=replica))
                stack.callback(engines[-1].engine.close)
        yield engines


def run_trio(main: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Run ``main`` under trio and raise the one error that ended it, without its groups."""
    try:
        return trio.run(main, *args)
    except BaseExceptionGroup as group:
        raise first_leaf(group) from None


def first_leaf(error: BaseException) -> BaseException:
    """Return the first error in a group that is no group itself."""
    while isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        error = group.exceptions[0]
    return error


async def serve_terminal(
    session: Session,
    run: Callable[[], Awaitable[str]],
    log: LogPrinter,
    *,
    is_input_read: bool = True,
) -> None:
    """Print what a session sends and logs while ``run()`` runs, then its result.

    Lines of stdin are its messages, from when it first wants one. The thread that writes to the terminal may be stuck there (a paused pager): it is abandoned,
    so that the program can still be stopped.
    """
    printer = MessagePrinter()

    async def drain() -> None:
        while messages := await session.outbox.take():
            await run_abandonable(printer.print_messages, messages)

    result: str | None = None
    failure: InferletError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain)
        nursery.start_soon(log.print_lines)
        reading, wanted = trio.CancelScope(), trio.Event()
        session.on_receive = (
            wanted.set
        )  # before the program runs, which it does at once
        if is_input_read:
            nursery.start_soon(feed_lines, session.inbox, wanted, reading)
        try:
            result = await run()
        except InferletError as error:
            failure = error  # raised once everything that came before it is printed
        log.close()
        reading.cancel()
    # In a thread as well, since a terminal that takes nothing must not hold up the loop.
    if failure is not None:
        await run_abandonable(printer.end_line)
        raise failure
    assert result is not None, "run() returns or raises"
    await run_abandonable(printer.print_result, result)
