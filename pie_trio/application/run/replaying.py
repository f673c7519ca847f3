"""``pie replay``: a recorded run once more, without a model."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_trio.application.authoring.testing.native_runs import run_natively_in_test
from pie_trio.application.authoring.testing.runs import (
    Order,
    Outcome,
    Sandbox,
    run_in_sandbox,
)
from pie_trio.application.authoring.testing.virtual_clock import VirtualClock
from pie_trio.application.recording.files import RecordingError
from pie_trio.application.recording.player import Player
from pie_trio.application.recording.programs import digest_of, find_program
from pie_trio.application.recording.taps import tap_interfaces
from pie_trio.application.run.command import run_trio
from pie_trio.application.run.console import MessagePrinter
from pie_trio.errors import PieError

if TYPE_CHECKING:
    from pie_trio.application.run.signals import Signals
    from pie_trio.config import WasmConfig

__all__ = ["replay"]


def replay(
    recording: Path,
    program: Path | None,
    signals: Signals,
    *,
    is_native: bool | None,
    wasm: WasmConfig,
) -> None:
    """Run a program on the answers of a recording; print what it sends, logs and returns.

    Args:
        recording: The file.
        program: None for the recorded one, at the path that it had.
        signals: Of this command.
        is_native: Run it in this Python; None for as it was recorded.
        wasm: Where what was compiled is kept.

    Raises:
        DivergedError: It made another call, or ended otherwise; the message says where.
        RecordingEndedError: All was as recorded, up to where that run was ended from outside.
        RecordingError: The file cannot be used, or its program is not there.
        PieError: The program failed, as it did when it was recorded.
    """
    player = Player(recording)
    path = Path(player.header.program) if program is None else program
    if program is None and not path.exists():
        raise RecordingError(
            f"the program of {recording} was {path}, which is not there: name it, as in "
            f"`pie replay {recording} PROGRAM`"
        )
    found = find_program(path)
    if digest_of(found) != player.header.digest:
        _tell("the program is not the one that was recorded")
    if is_native is None:
        is_native = player.header.mode == "native"
    adapt = functools.partial(tap_interfaces, tap=player)
    nothing: dict[str, Any] = {}
    order = Order(
        *(path, found, found.manifest, nothing, (), (), nothing, 0, player, adapt),
        has_terminal=True,
    )
    outcome = _Printing()
    try:
        if is_native:
            result = run_natively_in_test(order, VirtualClock(), outcome).result
        else:
            result = _run_in_wasm(order, wasm, outcome, signals).result
    except PieError as error:
        _print(player)
        player.fail(error)
        raise
    except BaseException:
        _print(player)
        raise
    _print(player)
    player.finish(result)
    MessagePrinter().print_result(json.dumps(result))
    _tell(f"replayed {player.num_calls} calls as recorded")


class _Printing(Outcome):
    """Prints what a program logs as it comes; a debugger may stop it for long."""

    def note_line(self, line: object) -> None:
        """Print a line."""
        super().note_line(line)  # type: ignore[arg-type]
        sys.stderr.write(self.output.pop() + "\n")


def _run_in_wasm(
    order: Order, wasm: WasmConfig, outcome: Outcome, signals: Signals
) -> Outcome:
    sandbox = Sandbox(
        slice_ticks=wasm.slice_ticks, cache_directory=wasm.cache_directory
    )
    try:
        with signals.phase():
            linked = sandbox.link(order)

        async def run() -> Outcome:
            async with signals.watch():
                return await run_in_sandbox(order, linked, sandbox.seed, outcome)

        with signals.left_to_trio():
            return run_trio(run)
    finally:
        sandbox.close()


def _print(player: Player) -> None:
    printer = MessagePrinter()
    printer.print_messages(player.messages)
    printer.end_line()


def _tell(text: str) -> None:
    sys.stderr.write(f"pie: {text}\n")
