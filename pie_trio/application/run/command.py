"""Run one program to its end with the terminal as its client."""

from __future__ import annotations

import gc
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

import trio

from pie_trio.application.lifecycle.instances import link_language, open_launcher
from pie_trio.application.lifecycle.programs import SourceProgram, load_program
from pie_trio.application.run.arguments import parse_program_arguments
from pie_trio.application.run.console import (
    LogPrinter,
    MessagePrinter,
    run_abandonable,
)
from pie_trio.application.run.setup import load_engine, prepare_language
from pie_trio.application.serving import LoadedEngine, open_models
from pie_trio.application.wasm.compile_cache import CompileCache
from pie_trio.application.wasm.runtime import LinkedComponent, WasmRuntime
from pie_trio.config import ControlConfig, InstanceLimits, ModelConfig, WasmConfig
from pie_trio.errors import InferletError

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
    from pie_trio.application.run.signals import Signals

__all__ = [
    "RunOptions",
    "first_leaf",
    "load_engines",
    "run_in_wasm",
    "run_trio",
    "serve_terminal",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What ``pie run`` was asked for.

    Attributes:
        program: A file or folder.
        arguments: The program's own, as on the command line.
        choose_models: Finds the models, once the program's arguments are known to be right;
            the first is the default.
        num_warm: Guests to instantiate ahead of time.
    """

    program: Path
    arguments: Sequence[str]
    choose_models: Callable[[], Sequence[ModelConfig]]
    wasm: WasmConfig = field(default_factory=WasmConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    limits: InstanceLimits = field(default_factory=InstanceLimits)
    num_warm: int = 0


def run_in_wasm(options: RunOptions, signals: Signals) -> None:
    """Run the program in the sandbox.

    Raises:
        PieError: Something is wrong with the model, the program or its arguments, or it failed.
        Interrupted: By Ctrl-C or SIGTERM.
        BrokenPipeError: Nobody reads the output any more.
        SystemExit: Usage of the program's own arguments was printed.
    """
    program = load_program(options.program)
    with signals.phase():
        path = prepare_language(options.wasm)
    with WasmRuntime(
        options.wasm, CompileCache(options.wasm.cache_directory)
    ) as runtime:
        language = link_language(runtime, path)
        with signals.left_to_trio():
            description = run_trio(_describe, language, program, options, signals)
        arguments = parse_program_arguments(
            description, options.arguments, program=f"pie run {options.program}"
        )
        with load_engines(options.choose_models()) as engines:
            signals.check()
            gc.collect()
            gc.freeze()  # what is there now stays: collections need not look at it again
            with signals.left_to_trio():
                run_trio(_run, language, program, arguments, options, engines, signals)


async def _describe(
    language: LinkedComponent,
    program: SourceProgram,
    options: RunOptions,
    signals: Signals,
) -> dict[str, Any]:
    async with (
        signals.watch(),
        open_launcher(language, {}, options.limits) as launcher,
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
    program: SourceProgram,
    arguments: Mapping[str, Any],
    options: RunOptions,
    engines: Sequence[LoadedEngine],
    signals: Signals,
) -> None:
    async with (
        signals.watch(),
        open_models(engines, options.control, options.limits) as models,
        open_launcher(
            language, models, options.limits, num_warm=options.num_warm
        ) as launcher,
    ):
        await launcher.compile(program)
        log = LogPrinter()
        instance = launcher.prepare(program, arguments, on_log=log.add)
        await serve_terminal(instance.session, instance.run, log)


@contextmanager
def load_engines(models: Sequence[ModelConfig]) -> Generator[Sequence[LoadedEngine]]:
    """Load models and close their engines at the end."""
    with ExitStack() as stack:
        engines: list[LoadedEngine] = []
        for model in models:
            engines.append(load_engine(model))
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
    session: Session, run: Callable[[], Awaitable[str]], log: LogPrinter
) -> None:
    """Print what a session sends and logs while ``run()`` runs, then its result.

    The thread that writes to the terminal may be stuck there (a paused pager): it is abandoned,
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
        try:
            result = await run()
        except InferletError as error:
            failure = error  # raised once everything that came before it is printed
        log.close()
    # In a thread as well, since a terminal that takes nothing must not hold up the loop.
    if failure is not None:
        await run_abandonable(printer.end_line)
        raise failure
    assert result is not None, "run() returns or raises"
    await run_abandonable(printer.print_result, result)
