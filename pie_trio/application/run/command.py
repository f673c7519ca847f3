"""Run one program to its end with the terminal as its client."""

from __future__ import annotations

import gc
import signal
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

import trio

from pie_trio.application.lifecycle.instances import link_language, open_launcher
from pie_trio.application.lifecycle.programs import SourceProgram, load_program
from pie_trio.application.run.arguments import parse_program_arguments
from pie_trio.application.run.console import MessagePrinter, print_log
from pie_trio.application.run.setup import load_engine, prepare_language
from pie_trio.application.serving import LoadedEngine, open_models
from pie_trio.application.wasm.compile_cache import CompileCache
from pie_trio.application.wasm.runtime import LinkedComponent, WasmRuntime
from pie_trio.config import ControlConfig, InstanceLimits, ModelConfig, WasmConfig
from pie_trio.errors import InferletError

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        Awaitable,
        Callable,
        Generator,
        Mapping,
        Sequence,
    )
    from pathlib import Path

    from pie_trio.application.host.session import Session

__all__ = [
    "Interrupted",
    "RunOptions",
    "first_leaf",
    "load_engines",
    "run_in_wasm",
    "run_trio",
    "serve_terminal",
    "watch_signals",
]

T = TypeVar("T")


class Interrupted(Exception):  # noqa: N818 - a wish of the user's, not an error
    """A signal asked the program to stop.

    Attributes:
        number: The signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What ``pie run`` was asked for.

    Attributes:
        program: A file or folder.
        arguments: The program's own, as on the command line.
        models: The first is the default.
        num_warm: Guests to instantiate ahead of time.
    """

    program: Path
    arguments: Sequence[str]
    models: Sequence[ModelConfig]
    wasm: WasmConfig = field(default_factory=WasmConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    limits: InstanceLimits = field(default_factory=InstanceLimits)
    num_warm: int = 0


def run_in_wasm(options: RunOptions) -> None:
    """Run the program in the sandbox.

    Raises:
        PieError: Something is wrong with the model, the program or its arguments, or it failed.
        Interrupted: By Ctrl-C or SIGTERM.
        BrokenPipeError: Nobody reads the output any more.
        SystemExit: Usage of the program's own arguments was printed.
    """
    program = load_program(options.program)
    path = prepare_language(options.wasm)
    with WasmRuntime(
        options.wasm, CompileCache(options.wasm.cache_directory)
    ) as runtime:
        language = link_language(runtime, path)
        description = run_trio(_describe, language, program, options)
        arguments = parse_program_arguments(
            description, options.arguments, program=f"pie run {options.program}"
        )
        with load_engines(options.models) as engines:
            gc.collect()
            gc.freeze()  # what is there now stays: collections need not look at it again
            run_trio(_run, language, program, arguments, options, engines)


async def _describe(
    language: LinkedComponent, program: SourceProgram, options: RunOptions
) -> dict[str, Any]:
    async with watch_signals(), open_launcher(language, {}, options.limits) as launcher:
        return await launcher.prepare(program, {}, on_log=print_log).describe()


async def _run(
    language: LinkedComponent,
    program: SourceProgram,
    arguments: Mapping[str, Any],
    options: RunOptions,
    engines: Sequence[LoadedEngine],
) -> None:
    async with (
        watch_signals(),
        open_models(engines, options.control, options.limits) as models,
        open_launcher(
            language, models, options.limits, num_warm=options.num_warm
        ) as launcher,
    ):
        await launcher.compile(program)
        instance = launcher.prepare(program, arguments, on_log=print_log)
        await serve_terminal(instance.session, instance.run)


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


@asynccontextmanager
async def watch_signals() -> AsyncGenerator[None]:
    """Raise :class:`Interrupted` in the block upon the first Ctrl-C or SIGTERM.

    Python's own KeyboardInterrupt could be raised inside of a callback from C, where it would
    be lost. After the first signal Python's handling is back, so that a second one always works.
    """
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:

        async def watch() -> None:
            async for number in signals:
                raise Interrupted(number)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            yield
            nursery.cancel_scope.cancel()


async def serve_terminal(session: Session, run: Callable[[], Awaitable[str]]) -> None:
    """Print what a session sends while ``run()`` runs, then its result.

    The thread that writes to the terminal may be stuck there (a paused pager): it is abandoned,
    so that the program can still be stopped.
    """
    printer = MessagePrinter()

    async def drain() -> None:
        while messages := await session.outbox.take():
            await trio.to_thread.run_sync(
                printer.print_messages,
                messages,
                abandon_on_cancel=True,
                limiter=limiter,
            )

    limiter = trio.CapacityLimiter(1)
    result: str | None = None
    failure: InferletError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain)
        try:
            result = await run()
        except InferletError as error:
            failure = error  # raised once everything that was sent before it is printed
    if failure is not None:
        printer.end_line()
        raise failure
    assert result is not None, "run() returns or raises"
    printer.print_result(result)
