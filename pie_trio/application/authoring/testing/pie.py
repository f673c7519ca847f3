"""What a test has to run programs with: the object behind the fixture ``pie``."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import trio

from pie_trio.application.authoring.projects import load_project
from pie_trio.application.authoring.testing.native_runs import run_natively_in_test
from pie_trio.application.authoring.testing.runs import (
    Order,
    Outcome,
    Sandbox,
    run_in_sandbox,
)
from pie_trio.application.authoring.testing.virtual_clock import VirtualClock
from pie_trio.application.recording.files import Header
from pie_trio.application.recording.player import Player
from pie_trio.application.recording.programs import digest_of, find_program
from pie_trio.application.recording.recorder import Recorder
from pie_trio.application.recording.taps import tap_interfaces
from pie_trio.application.run.command import first_leaf
from pie_trio.application.run.setup import load_engine, parse_model
from pie_trio.application.serving import LoadedEngine
from pie_trio.errors import PieError
from pie_trio.inference.scripted import ScriptedEngine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pie_trio.application.authoring.packing import PackedProgram
    from pie_trio.application.authoring.projects import Project
    from pie_trio.application.wasm.linking import HostInterface
    from pie_trio.control.outbox import Message
    from pie_trio.engine_api import Tokenizer

__all__ = ["Pie"]

Mode = Literal["wasm", "native"]


class Pie:
    """Runs programs in a test.

    Without more, the model is a scripted one that knows nothing: see :meth:`script`. Time is
    then virtual: a program that sleeps takes no time.

    Args:
        folder: What paths of programs are relative to.
        sandbox: Shared by all tests.
    """

    def __init__(self, folder: Path, sandbox: Sandbox) -> None:
        self._folder, self._sandbox = folder, sandbox
        self._script: dict[str, str | Sequence[str]] = {}
        self._tokens: dict[str, Any] = {}
        self._model: str | None = None
        self._programs: dict[str, Path] = {}
        self._recording: Path | None = None

    def script(
        self,
        script: Mapping[str, str | Sequence[str]],
        *,
        tokenizer: Tokenizer | None = None,
        eos_token_id: int = 257,
        bos_token_id: int | None = 256,
    ) -> None:
        """Say how the model continues texts: by prompt, one continuation or several.

        A text that ends in a prompt, or in one and the beginning of its continuation, goes on
        as the continuation does, and then ends. Of several continuations, sampling takes any,
        and greedy decoding the first.

        Args:
            script: Is added to what there is.
            tokenizer: Of the model; None for one token a byte, and 256 and 257 for the
                beginning and the end.
            eos_token_id: Of the tokenizer.
            bos_token_id: Of the tokenizer; None for none.
        """
        self._script.update(script)
        if tokenizer is not None:
            self._tokens = {
                "tokenizer": tokenizer,
                "eos_token_id": eos_token_id,
                "bos_token_id": bos_token_id,
            }

    def use_model(self, model: str | Path) -> None:
        """Run on a real model from now on, in real time.

        Args:
            model: As ``pie run --model`` takes it.
        """
        self._model = str(model)

    def add_program(self, name: str, path: str | Path) -> None:
        """Let programs launch another one by name."""
        self._programs[name] = self._find(path)

    def record(self, path: str | Path) -> None:
        """Write the host calls of the next run to a file."""
        self._recording = Path(path)

    def run_sync(
        self,
        program: str | Path,
        /,
        *,
        mode: Mode = "wasm",
        messages: Sequence[Message] = (),
        seed: int = 0,
        arguments: Mapping[str, Any] | None = None,
        **more_arguments: Any,
    ) -> Outcome:
        """Run a program to its end, and return what can be seen of it.

        Args:
            program: A .py file, a folder, a .zip, or a component.
            mode: ``wasm`` or ``native``.
            messages: What its client sends.
            seed: Of the random numbers of the program.
            arguments: Of the program, by name.
            **more_arguments: The same, for names that are no parameters here.

        Raises:
            InferletError: The program failed; ``GuestFailedError`` has its traceback.
            ProgramError: It cannot be launched.
        """
        recording, self._recording = self._recording, None
        path = self._find(program)
        found = find_program(path)
        given = {**(arguments or {}), **more_arguments}
        engines = [self._make_engine()]
        tap: Recorder | None = None
        try:
            if recording is not None:
                names = [engine.engine.info.name for engine in engines]
                digest = digest_of(found)
                tap = Recorder()
                tap.open(recording, Header(path.name, digest, mode, names))
            outcome = self._run(path, found, mode, given, messages, engines, seed, tap)
        except BaseException as error:
            if tap is not None:
                tap.fail(error)
            raise
        finally:
            for engine in engines:
                engine.engine.close()
        if tap is not None:
            tap.finish(outcome.result)
        return outcome

    async def run(
        self,
        program: str | Path,
        /,
        *,
        mode: Mode = "wasm",
        messages: Sequence[Message] = (),
        seed: int = 0,
        arguments: Mapping[str, Any] | None = None,
        **more_arguments: Any,
    ) -> Outcome:
        """Run a program as :meth:`run_sync` does, from a test that runs under trio.

        The run has a clock of its own, so that of the test does not matter.
        """
        call = functools.partial(
            self.run_sync,
            program,
            mode=mode,
            messages=messages,
            seed=seed,
            arguments=arguments,
            **more_arguments,
        )
        return await trio.to_thread.run_sync(call, limiter=_ONE_AT_A_TIME)

    def replay(
        self, program: str | Path, recording: str | Path, *, mode: Mode = "wasm"
    ) -> Outcome:
        """Run a program on the recorded answers, without a model.

        Its messages and result are those of the recorded run.

        Raises:
            DivergedError: It made another call, or ended otherwise; the message says where.
            RecordingError: The recording cannot be used.
            InferletError: The program failed, as it did when it was recorded.
        """
        player = Player(Path(recording))
        path = self._find(program)
        try:
            outcome = self._run(path, find_program(path), mode, {}, (), [], 0, player)
        except PieError as error:
            player.fail(error)
            raise
        player.finish(outcome.result)
        outcome.messages = list(player.messages)
        return outcome

    def _run(
        self,
        path: Path,
        found: Project | PackedProgram,
        mode: Mode,
        arguments: Mapping[str, Any],
        messages: Sequence[Message],
        engines: Sequence[LoadedEngine],
        seed: int,
        tap: Recorder | Player | None,
    ) -> Outcome:
        def adapt(interfaces: list[HostInterface]) -> list[HostInterface]:
            return interfaces if tap is None else tap_interfaces(interfaces, tap)

        programs = {name: load_project(p).program for name, p in self._programs.items()}
        order = Order(
            *(path, found, found.manifest, arguments, messages, engines, programs),
            *(seed, tap, adapt),
        )
        clock = VirtualClock() if self._model is None else None
        if mode == "native":
            return run_natively_in_test(order, clock)
        linked = self._sandbox.link(order)
        instruments = [] if clock is None else [clock]
        try:
            main = functools.partial(run_in_sandbox, order, linked, self._sandbox.seed)
            return trio.run(main, clock=clock, instruments=instruments)
        except BaseExceptionGroup as group:
            raise first_leaf(group) from None

    def _make_engine(self) -> LoadedEngine:
        if self._model is not None:
            return load_engine(parse_model(self._model))
        engine = ScriptedEngine(self._script, **self._tokens)
        return LoadedEngine(engine, engine.tokenizer)

    def _find(self, program: str | Path) -> Path:
        path = Path(program)
        return path if path.is_absolute() else self._folder / path


_ONE_AT_A_TIME = trio.CapacityLimiter(1)
"""Guests are polled in one thread at a time: see :class:`~.runtime.WasmRuntime`."""
