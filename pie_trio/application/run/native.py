"""Run a program in this Python instead of Wasm: the same host, the same tokens, and pdb works.

The program has the main thread, so that a debugger has the terminal and Ctrl-C reaches it; the
engine and the control layer run under trio in another thread.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import trio

import pie_trio
from inferlet_py._host import connect
from inferlet_py._models import forget_models
from inferlet_py._program import describe_failure, find_inferlet, import_file
from pie_trio.application.host.instance_log import InstanceLog
from pie_trio.application.host.session import Launch, Session
from pie_trio.application.lifecycle.programs import load_program
from pie_trio.application.run.arguments import parse_program_arguments
from pie_trio.application.run.command import (
    RunOptions,
    load_engines,
    run_trio,
    serve_terminal,
)
from pie_trio.application.run.console import print_log
from pie_trio.application.run.native_host import NativeHost
from pie_trio.application.serving import LoadedEngine, open_models
from pie_trio.errors import GuestFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["run_natively"]

T = TypeVar("T")

HIDDEN_FOLDER = str(Path(pie_trio.__file__).parent)
"""Its frames are no part of the author's traceback."""


def run_natively(options: RunOptions) -> None:
    """Run the program without a sandbox.

    Raises:
        PieError: Something is wrong with the model, the program or its arguments, or it failed.
        KeyboardInterrupt: By Ctrl-C.
        SystemExit: Usage of the program's own arguments was printed.
    """
    program = load_program(options.program)
    folder = options.program if options.program.is_dir() else options.program.parent
    # What a program prints is its log, as in Wasm; stdout is for what it sends and returns.
    with contextlib.redirect_stdout(sys.stderr):
        found = _report(lambda: find_inferlet(import_file(folder / program.entry)))
        description = _report(found.describe)
    arguments = parse_program_arguments(
        description, options.arguments, program=f"pie run --native {options.program}"
    )
    launch = Launch(f"{program.name}-native", json.dumps(arguments, ensure_ascii=False))
    with load_engines(options.models) as engines:
        service = _Service(options, launch, engines)
        with service as host:
            connect(host)
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    service.result = _report(lambda: found.run(host))
            finally:
                connect(None)
                forget_models()


def _report(action: Callable[[], T]) -> T:
    """Turn what the author's code raises into the error that Wasm would report."""
    try:
        return action()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        kind, message, text = describe_failure(error, hidden=[HIDDEN_FOLDER])
        raise GuestFailedError(kind=kind, message=message, traceback=text) from error


class _Service:
    """A session under trio in a thread of its own, for as long as the ``with`` block is open.

    Attributes:
        result: The program's, once it has one; printed when the block is left.
    """

    def __init__(
        self, options: RunOptions, launch: Launch, engines: Sequence[LoadedEngine]
    ) -> None:
        self.result: str | None = None
        self._options, self._launch, self._engines = options, launch, engines
        self._ready = threading.Event()
        self._host: NativeHost | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._ended: trio.Event | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="pie-trio")

    def __enter__(self) -> NativeHost:
        self._thread.start()
        self._ready.wait()
        if self._host is None:
            self._join()
        assert self._host is not None, (
            "without a host the thread has failed, and that was raised"
        )
        return self._host

    def __exit__(self, *_: object) -> None:
        assert self._token is not None, "entered"
        assert self._ended is not None, "entered"
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._ended.set)
        self._join()

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
        limits = self._options.limits
        log = InstanceLog(max_bytes=limits.log_bytes, on_line=print_log)
        async with open_models(self._engines, self._options.control, limits) as models:
            session = Session(self._launch, models, limits, log)
            self._token = trio.lowlevel.current_trio_token()
            self._ended = trio.Event()
            self._host = NativeHost(session, self._token)
            await serve_terminal(session, lambda: self._run_session(session))

    async def _run_session(self, session: Session) -> str:
        assert self._ended is not None, "set by _serve"
        self._ready.set()
        try:
            await self._ended.wait()
            return "null" if self.result is None else self.result
        finally:
            session.log.close()
            await session.close()
