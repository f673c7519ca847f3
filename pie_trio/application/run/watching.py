"""``pie run --watch``: run a program again whenever one of its files is saved.

Models stay loaded and guests stay ready, so that what is left between saving and the first token
is reading the files, compiling them, and the launch.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import trio

from pie_trio.application.authoring.projects import load_project
from pie_trio.application.lifecycle.instances import link_language, open_launcher
from pie_trio.application.run.arguments import parse_program_arguments
from pie_trio.application.run.command import load_engines, run_trio, serve_terminal
from pie_trio.application.run.console import LogPrinter
from pie_trio.application.run.setup import prepare_language
from pie_trio.application.services import open_services
from pie_trio.application.serving import LoadedEngine, open_models
from pie_trio.application.wasm.compile_cache import CompileCache
from pie_trio.application.wasm.runtime import WasmRuntime
from pie_trio.errors import ConfigError, GuestFailedError, PieError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from pie_trio.application.lifecycle.instances import Launcher
    from pie_trio.application.run.command import RunOptions
    from pie_trio.application.run.signals import Signals
    from pie_trio.application.wasm.runtime import LinkedComponent

__all__ = ["Files", "run_watching"]

POLL_SECONDS = 0.01
NUM_WARM = 2

Stamp = tuple[int, int, int]


class Files:
    """The files that a program is made of, and whether one has changed.

    They are looked at every few milliseconds, which costs some microseconds a file and works on
    every system and file system. Folders are looked at for new files.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamps: dict[str, Stamp | None] = {}
        self.look_again()

    def look_again(self) -> None:
        """Find out which files there are, and how they are now."""
        self._stamps = {name: _stamp(name) for name in self._names()}

    def have_changed(self) -> bool:
        """Say whether one was changed, added or removed since the last look."""
        return any(_stamp(name) != stamp for name, stamp in self._stamps.items())

    def _names(self) -> Iterable[str]:
        if not self._path.is_dir():
            yield str(self._path)
            yield str(self._path.parent / "pyproject.toml")
            return
        for folder, folders, files in os.walk(self._path):
            hidden = [name for name in folders if name.startswith((".", "__pycache__"))]
            for name in hidden:
                folders.remove(name)
            yield folder
            for name in files:
                if name.endswith((".py", ".toml")):
                    yield os.path.join(folder, name)  # noqa: PTH118  # of every file


def _stamp(name: str) -> Stamp | None:
    try:
        found = os.stat(name)  # noqa: PTH116  # a Path for each look would cost more
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def run_watching(options: RunOptions, signals: Signals) -> None:
    """Run the program, and again after each change, until Ctrl-C.

    Raises:
        PieError: Something is wrong with the model, or the program is a component. What is wrong
            with the program is printed, and the next change may mend it.
        Interrupted: By Ctrl-C or SIGTERM.
    """
    if options.program.suffix == ".wasm":
        raise ConfigError(
            f"--watch needs the source: {options.program} is built already"
        )
    if not options.program.exists():
        load_project(options.program)  # which says what is wrong
    with signals.phase():
        path = prepare_language(options.wasm)
    with WasmRuntime(
        options.wasm, CompileCache(options.wasm.cache_directory)
    ) as runtime:
        language = link_language(runtime, path)
        with load_engines(options.choose_models()) as engines:
            signals.check()
            with signals.left_to_trio():
                run_trio(_watch, language, options, engines, signals)


async def _watch(
    language: LinkedComponent,
    options: RunOptions,
    engines: Sequence[LoadedEngine],
    signals: Signals,
) -> None:
    async with (
        signals.watch(),
        open_models(engines, options.control, options.limits) as models,
        open_services(
            models, store_path=options.store_path, programs=options.load_programs()
        ) as services,
        open_launcher(
            language,
            services,
            options.limits,
            num_warm=max(options.num_warm, NUM_WARM),
        ) as launcher,
    ):
        options.on_serving(services)
        files = Files(options.program)
        while True:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_run_once, launcher, options)
                await _wait_for_change(files)
                nursery.cancel_scope.cancel()
            _say("--- changed: running again")


async def _wait_for_change(files: Files) -> None:
    while not files.have_changed():  # noqa: ASYNC110  # the file system tells nobody
        await trio.sleep(POLL_SECONDS)
    # An editor may be in the middle of writing.
    while files.have_changed():
        files.look_again()
        await trio.sleep(POLL_SECONDS)


async def _run_once(launcher: Launcher, options: RunOptions) -> None:
    """Run the program as it is now; what is wrong with it is printed."""
    try:
        project = load_project(options.program)
        own = options.for_manifest(project.manifest)
        await launcher.compile(project.program)
        log = LogPrinter()
        describing = launcher.prepare(project.program, {})
        arguments = parse_program_arguments(
            await describing.describe(),
            options.arguments,
            program=f"pie run --watch {options.program}",
        )
        instance = launcher.prepare(
            project.program,
            arguments,
            on_log=log.add,
            grants=own.make_grants(),
            limits=own.limits,
        )
        # Lines of stdin would go to the run that is over, too.
        instance.session.inbox.end()
        await serve_terminal(instance.session, instance.run, log, is_input_read=False)
    except GuestFailedError as error:
        _say(error.traceback.rstrip() or f"error: {error}")
    except PieError as error:
        _say(f"pie: {error}")
    except SystemExit:
        return  # usage was printed; another signature may fit


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201  # it is the command line
