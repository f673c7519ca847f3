"""Ctrl-C and SIGTERM at any moment: one message, the exit code, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, cast

import pytest
import trio

from pie_trio.application.run.reporting import Report, reporting
from pie_trio.application.run.signals import Interrupted, catch_signals
from tests.cli.conftest import LIMIT_SECONDS, ROOT
from tests.cli.test_run import write_program

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from pie_trio.application.services import Services

ENDINGS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
each_signal = pytest.mark.parametrize(("number", "code", "word"), ENDINGS)


@contextmanager
def started(
    *arguments: object, **environment: str
) -> Generator[tuple[subprocess.Popen[str], IO[str], IO[str]]]:
    """Start ``pie`` and end it with the block, however that ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pie_trio", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            yield process, process.stdout, process.stderr
        finally:
            process.kill()


@each_signal
def test_a_signal_while_building_leaves_nothing(
    tmp_path: Path, number: signal.Signals, code: int, word: str
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    program = write_program(tmp_path, "return 1")
    flags = ("run", "--cache-dir", tmp_path / "cache", program)
    with started(*flags, TMPDIR=str(temporary)) as (process, _, stderr):
        assert stderr.readline().startswith("building")
        process.send_signal(number)
        # The end of the pipe means that the child, which inherits it, has ended too.
        assert stderr.read() == f"pie: {word}\n"
        assert process.wait(LIMIT_SECONDS) == code
    assert list(temporary.iterdir()) == []


@each_signal
def test_a_program_cleans_up_after_a_signal(
    random_model: Path,
    tmp_path: Path,
    mode_flags: list[str],
    number: signal.Signals,
    code: int,
    word: str,
) -> None:
    body = (
        "try:\n"
        "    await send('ready\\n')\n"
        "    await sleep(1e6)\n"
        "finally:\n"
        "    with CancelScope(shield=True):\n"
        "        await sleep(0.01)\n"
        "        await send('cleaned up\\n')"
    )
    program = write_program(tmp_path, body)
    flags = ("run", *mode_flags, "--model", random_model, program)
    with started(*flags) as (process, stdout, stderr):
        assert stdout.readline() == "ready\n"
        process.send_signal(number)
        assert stdout.read() == "cleaned up\n"
        assert stderr.read() == f"pie: {word}\n"
        assert process.wait(LIMIT_SECONDS) == code


@each_signal
def test_a_signal_ends_a_native_program(
    random_model: Path, tmp_path: Path, number: signal.Signals, code: int, word: str
) -> None:
    program = write_program(tmp_path, "await send('ready\\n')\nwhile True: pass")
    flags = ("run", "--native", "--model", random_model, program)
    with started(*flags) as (process, stdout, stderr):
        assert stdout.readline() == "ready\n"
        process.send_signal(number)
        assert stderr.read() == f"pie: {word}\n"
        assert process.wait(LIMIT_SECONDS) == code


def test_a_signal_ends_a_program_whose_output_nobody_takes(
    random_model: Path, tmp_path: Path, mode_flags: list[str]
) -> None:
    body = "await send('ready\\n')\nwhile True: await send('x' * 10000)"
    program = write_program(tmp_path, body)
    flags = ("run", *mode_flags, "--model", random_model, program)
    with started(*flags) as (process, stdout, stderr):
        assert stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_SECONDS) == 130
        assert stderr.read() == "pie: interrupted\n"


def test_a_signal_ends_a_program_whose_log_nobody_takes(
    random_model: Path, tmp_path: Path
) -> None:
    body = (
        "for _ in range(2000): print('x' * 1000)\n"
        "await send('ready\\n')\n"
        "while True: print('x' * 1000)"
    )
    program = write_program(tmp_path, body)
    with started("run", "--model", random_model, program) as (process, stdout, _):
        assert stdout.readline() == "ready\n"  # stderr is full: it has 64 KiB
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_SECONDS) == 130


def test_a_signal_that_a_destructor_loses_is_honoured_at_the_end() -> None:
    class Loses:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def lose() -> None:
        with catch_signals():
            Loses()

    before = signal.getsignal(signal.SIGINT)  # a shell's background job ignores it
    with pytest.raises(Interrupted) as caught:
        lose()
    assert caught.value.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_before_trio_watches_is_honoured_there() -> None:
    async def main() -> None:
        signal.raise_signal(signal.SIGINT)
        async with signals.watch():
            await trio.sleep_forever()

    with pytest.raises(Interrupted), catch_signals() as signals:
        with signals.left_to_trio():
            trio.run(main)


def test_an_error_does_not_hide_a_signal() -> None:
    def fail() -> None:
        with catch_signals() as signals, signals.left_to_trio():
            signal.raise_signal(signal.SIGTERM)
            raise ValueError

    with pytest.raises(Interrupted):
        fail()


class Interrupting:
    """Stands for services: whoever asks which models there are is interrupted."""

    @property
    def models(self) -> dict[str, object]:
        signal.raise_signal(signal.SIGTERM)
        return {}

    timeline = SimpleNamespace(spans=())


@pytest.mark.parametrize("failure", [None, ValueError("of the run")])
def test_a_signal_during_the_report_waits_until_it_is_written(
    tmp_path: Path, failure: Exception | None
) -> None:
    trace = tmp_path / "trace.json"

    def fail() -> None:
        with catch_signals() as signals:
            report = Report()
            report.services = cast("Services", Interrupting())
            with reporting(report, trace, signals, is_explained=False):
                if failure is not None:
                    raise failure

    with pytest.raises(Interrupted):
        fail()
    assert "traceEvents" in trace.read_text()


def test_a_compiler_in_c_does_not_hold_up_a_signal(tmp_path: Path) -> None:
    script = (
        "import signal, threading\n"
        "from pie_trio.application.run.signals import catch_signals\n"
        "from pie_trio.application.wasm.compile_cache import run_in_thread\n"
        "def compile():\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    threading.Event().wait()\n"
        "with catch_signals():\n"
        "    run_in_thread(compile)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert "Interrupted: SIGINT" in done.stderr
