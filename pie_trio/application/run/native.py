"""Run a program in this Python instead of Wasm: the same host, the same tokens, and pdb works.

The program has the main thread, so that a debugger has the terminal and Ctrl-C reaches it; the
engine and the control layer run under trio in another thread.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import trio

import pie_trio
from inferlet_py._host import connect
from inferlet_py._models import forget_models
from inferlet_py._program import describe_failure, find_inferlet
from pie_trio.application.authoring.projects import load_project
from pie_trio.application.background import Lazy
from pie_trio.application.host.instance_log import InstanceLog
from pie_trio.application.host.session import Launch, Session
from pie_trio.application.lifecycle.instances import link_language, open_launcher
from pie_trio.application.recording.recording import Recording
from pie_trio.application.run.arguments import parse_program_arguments
from pie_trio.application.run.command import (
    OUTPUT_SECONDS,
    RunOptions,
    load_engines,
    run_trio,
    serve_terminal,
)
from pie_trio.application.run.console import LogPrinter, run_abandonable
from pie_trio.application.run.native_host import make_native_host
from pie_trio.application.run.native_modules import importable
from pie_trio.application.run.setup import prepare_language
from pie_trio.application.services import Services, open_services
from pie_trio.application.serving import LoadedEngine, open_models
from pie_trio.application.wasm.compile_cache import CompileCache
from pie_trio.application.wasm.runtime import WasmRuntime
from pie_trio.errors import (
    CancelledError,
    GuestFailedError,
    ProgramError,
    TimedOutError,
)

if TYPE_CHECKING:
    import types
    from collections.abc import (
        AsyncGenerator,
        Callable,
        Generator,
        Mapping,
        Sequence,
    )

    from inferlet_py._host import Host
    from pie_trio.application.lifecycle.instances import Instance, Launcher
    from pie_trio.application.lifecycle.programs import SourceProgram
    from pie_trio.application.run.signals import Signals

__all__ = ["run_natively"]

T = TypeVar("T")

MAX_TIMER_SECONDS = 1e8
"""More than any run takes, and few enough for the system's timers."""

HIDDEN_FOLDER = str(Path(pie_trio.__file__).parent)
"""Its frames are no part of the author's traceback."""


def run_natively(options: RunOptions, signals: Signals) -> None:
    """Run the program without a sandbox.

    Raises:
        PieError: Something is wrong with the model, the program or its arguments, or it failed.
        Interrupted: By Ctrl-C or SIGTERM.
        SystemExit: Usage of the program's own arguments was printed.
    """
    if options.program.suffix == ".wasm":
        raise ProgramError(
            f"{options.program} is a component, which has no Python to run natively: name its "
            "source, or leave out --native"
        )
    project, programs = load_project(options.program), options.load_programs()
    program, options = project.program, options.for_manifest(project.manifest)
    grants = options.make_grants()
    with contextlib.ExitStack() as stack:
        recording = stack.enter_context(Recording(options.record_path))
        module = stack.enter_context(importable(project, options.program))
        # What a program prints is its log, as in Wasm; stdout is for what it sends and
        # returns.
        with contextlib.redirect_stdout(sys.stderr), recording.system():
            found = _report(lambda: find_inferlet(module()))
            description = _report(found.describe)
        arguments = parse_program_arguments(
            description,
            options.arguments,
            program=f"pie run --native {options.program}",
        )
        launch = Launch(
            f"{program.name}-native",
            json.dumps(arguments, ensure_ascii=False),
            grants=grants,
        )
        models = options.choose_models()
        recording.open(options.program, program.digest, "native", models)
        engines = stack.enter_context(load_engines(models))
        service = _Service(options, launch, engines, program, programs, recording)
        asking = signals.asking(
            service.stop, wait_seconds=options.limits.grace_seconds + OUTPUT_SECONDS
        )
        with asking, service as host:
            connect(host)
            try:
                with (
                    contextlib.redirect_stdout(sys.stderr),
                    _time_limit(options.limits.wall_seconds),
                    recording.system(),
                ):
                    result = _report(lambda: found.run(host))
                service.result = recording.note(result)
            finally:
                connect(None)
                forget_models()


class _OutOfTimeError(BaseException):
    """Raised in the program at its time limit; none of its ``except Exception`` is meant."""


@contextlib.contextmanager
def _time_limit(seconds: float | None) -> Generator[None]:
    """Raise TimedOutError in the main thread where the block takes longer."""
    if seconds is None:
        yield
        return

    def handle(_number: int, _frame: types.FrameType | None) -> None:
        raise _OutOfTimeError

    previous = signal.signal(signal.SIGALRM, handle)
    # Once more each second, since an exception can be lost in a `__del__`.
    signal.setitimer(signal.ITIMER_REAL, min(seconds, MAX_TIMER_SECONDS), 1.0)
    try:
        yield
    except _OutOfTimeError:
        raise TimedOutError(
            f"the program ran for {seconds:g} s, which is its limit"
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _report(action: Callable[[], T]) -> T:
    """Turn what the author's code raises into the error that Wasm would report."""
    try:
        return action()
    except (KeyboardInterrupt, _OutOfTimeError):
        raise
    except BaseException as error:
        kind, message, text = describe_failure(error, hidden=[HIDDEN_FOLDER])
        raise GuestFailedError(kind=kind, message=message, traceback=text) from error


class _SandboxSpawner:
    """Launches the children of a native program, in Wasm: there is one main thread.

    What the sandbox takes is prepared when the first child is launched.
    """

    def __init__(self, services: Services, options: RunOptions) -> None:
        assert services.background is not None, "made by open_services"
        self._services, self._options = services, options
        self._launcher = Lazy(services.background, self._open_launcher)

    async def prepare_child(
        self, parent: Session, program: str, arguments: Mapping[str, Any]
    ) -> Instance:
        launcher = await self._launcher.get()
        return await launcher.prepare_child(parent, program, arguments)

    @contextlib.asynccontextmanager
    async def _open_launcher(self) -> AsyncGenerator[Launcher]:
        wasm = self._options.wasm
        # Seconds, the first time; Ctrl-C leaves the thread behind, as it would the process.
        path = await run_abandonable(prepare_language, wasm)
        with WasmRuntime(wasm, CompileCache(wasm.cache_directory)) as runtime:
            language = link_language(runtime, path)
            async with open_launcher(
                language, self._services, self._options.limits
            ) as launcher:
                yield launcher


class _Service:
    """A session under trio in a thread of its own, for as long as the ``with`` block is open.

    Attributes:
        result: The program's, once it has one; printed when the block is left.
    """

    def __init__(
        self,
        options: RunOptions,
        launch: Launch,
        engines: Sequence[LoadedEngine],
        program: SourceProgram,
        programs: Mapping[str, SourceProgram],
        recording: Recording,
    ) -> None:
        self.result: str | None = None
        self._options, self._launch, self._engines = options, launch, engines
        self._program, self._programs = program, programs
        self._recording = recording
        self._ready = threading.Event()
        self._host: Host | None = None
        self._session: Session | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._ended: trio.Event | None = None
        self._failure: BaseException | None = None
        self._scope = trio.CancelScope()
        self._thread = threading.Thread(target=self._run, name="pie-trio", daemon=True)

    def __enter__(self) -> Host:
        self._thread.start()
        try:
            self._ready.wait()
        except BaseException:
            self._end(is_cancelled=True)
            raise
        if self._host is None:
            self._join()
        assert self._host is not None, (
            "without a host the thread has failed, and that was raised"
        )
        return self._host

    def __exit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: types.TracebackType | None,
    ) -> None:
        # After Ctrl-C nobody waits for a terminal that takes nothing.
        self._end(is_cancelled=isinstance(error, KeyboardInterrupt))
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Have the program cancelled, from the main thread."""
        self._tell(self._stop_session)

    def _stop_session(self) -> None:
        if self._session is None:
            self._scope.cancel()  # no program runs yet
        else:
            self._session.stop(CancelledError("it was interrupted"))

    def _end(self, *, is_cancelled: bool) -> None:
        """Let the thread end by itself, or end it where it stands."""
        try:
            if is_cancelled:
                self._tell(lambda: self._scope.cancel())
            else:
                self._tell(self._set_ended)
            self._thread.join()
        except BaseException:
            self._tell(lambda: self._scope.cancel())
            self._thread.join()
            raise

    def _tell(self, function: Callable[[], object]) -> None:
        if self._token is None:
            self._scope.cancel()  # not entered yet
            return
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(function)

    def _set_ended(self) -> None:
        assert self._ended is not None, "set before the host, which __enter__ waits for"
        self._ended.set()

    def _join(self) -> None:
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            run_trio(self._serve)
        except BaseException as error:  # noqa: BLE001 - raised in the main thread
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._ended = trio.Event()
        limits = self._options.limits
        printer = LogPrinter()
        log = InstanceLog(max_bytes=limits.log_bytes, on_line=printer.add)
        with self._scope:
            async with (
                open_models(self._engines, self._options.control, limits) as models,
                open_services(
                    models, store_path=self._options.store_path, programs=self._programs
                ) as services,
            ):
                self._options.on_serving(services)
                session = Session(self._launch, services, limits, log)
                session.program = self._program
                session.spawner = _SandboxSpawner(services, self._options)
                self._session = session
                self._recording.watch(session)
                self._host = make_native_host(
                    session, self._token, adapt=self._recording.adapt
                )
                await serve_terminal(
                    session, lambda: self._run_session(session), printer
                )

    async def _run_session(self, session: Session) -> str:
        assert self._ended is not None, "set by _serve"
        self._ready.set()
        try:
            await self._ended.wait()
            return "null" if self.result is None else self.result
        finally:
            session.log.close()
            await session.close()
