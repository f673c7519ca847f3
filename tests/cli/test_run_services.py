"""Messages from stdin, the store, requests and children, as a user of ``pie run`` has them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import LIMIT_SECONDS, ROOT, Pie
from tests.cli.test_run import write_program

if TYPE_CHECKING:
    from pathlib import Path

RECEIVE = "async for message in messages(): await send(f'<{message}>')\nreturn 'end'"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "pie_trio", *map(str, arguments)]


def test_lines_of_stdin_are_messages(
    pie: Pie, random_model: Path, tmp_path: Path, mode_flags: list[str]
) -> None:
    program = write_program(tmp_path, RECEIVE)
    flags = ("run", "--model", random_model, *mode_flags, program)
    done = pie(*flags, stdin="é\r\n\nlast".encode())
    assert (done.code, done.out) == (0, "<é><><last>\nend\n"), done.err


def test_an_input_that_is_closed_has_no_lines(
    pie: Pie, random_model: Path, tmp_path: Path, mode_flags: list[str]
) -> None:
    done = pie(
        "run", "--model", random_model, *mode_flags, write_program(tmp_path, RECEIVE)
    )
    assert (done.code, done.out) == (0, "end\n"), done.err


def test_a_program_that_does_not_receive_leaves_its_input_alone(
    pie: Pie, random_model: Path, tmp_path: Path, mode_flags: list[str]
) -> None:
    program = write_program(tmp_path, "return 1")
    reader, writer = os.pipe()
    os.write(writer, b"for the next one\n")
    os.close(writer)
    flags = ("run", "--model", random_model, *mode_flags, program)
    done = pie(*flags, stdin=reader)
    assert done.code == 0, done.err
    assert os.read(reader, 100) == b"for the next one\n"
    os.close(reader)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_ctrl_c_ends_a_program_that_waits_for_a_line(
    random_model: Path, tmp_path: Path, mode_flags: list[str], is_terminal: bool
) -> None:
    body = "log('here')\nprint(await receive())\nlog('there')\nawait receive()"
    program = write_program(tmp_path, body)
    reader, writer = reversed(os.openpty()) if is_terminal else os.pipe()
    with subprocess.Popen(
        command("run", "--model", random_model, *mode_flags, program),
        cwd=ROOT,
        stdin=reader,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        os.write(writer, b"typed\n")
        lines = [process.stderr.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(LIMIT_SECONDS) == 130, rest
        told = ["[info] here\n", "typed\n", "[info] there\n"]
        # Natively a print is there before the log's thread has come to an earlier line.
        if mode_flags:
            lines, told = sorted(lines), sorted(told)
        assert lines == told
    assert "Traceback" not in rest
    os.close(reader)
    os.close(writer)


def test_the_store_is_a_private_file_that_runs_share(
    pie: Pie, random_model: Path, tmp_path: Path, mode_flags: list[str]
) -> None:
    program = write_program(
        tmp_path,
        "old = await store.get_text('k')\nawait store.set('k', 'v')\nreturn old",
    )
    flags = ("run", "--model", random_model, *mode_flags)
    data = tmp_path / "data"
    outputs = [pie(*flags, program, PIE_DATA_DIR=str(data)).out for _ in range(2)]
    assert outputs == ["", "v\n"]
    assert (data / "store.db").stat().st_mode & 0o777 == 0o600
    own = tmp_path / "own.db"
    assert pie(*flags, "--store", own, program).out == ""
    assert own.exists()


def test_a_run_without_the_store_makes_no_file(
    pie: Pie, random_model: Path, tmp_path: Path, mode_flags: list[str]
) -> None:
    data = tmp_path / "data"
    program = write_program(tmp_path, "return 1")
    flags = ("run", "--model", random_model, *mode_flags)
    assert pie(*flags, program, PIE_DATA_DIR=str(data)).code == 0
    assert not data.exists()


def test_only_hosts_that_are_allowed_are_reached(
    pie: Pie, random_model: Path, tmp_path: Path, mode_flags: list[str]
) -> None:
    program = write_program(tmp_path, "await http_get('http://127.0.0.1:9/')")
    flags = ("run", "--model", random_model, *mode_flags)
    refused = pie(*flags, program)
    assert refused.code == 1
    assert "start with --allow-http 127.0.0.1:9" in refused.err
    allowed = pie(*flags, "--allow-http", "127.0.0.1:9", program)
    assert "FailedError" in allowed.err  # nobody listens there


def test_a_program_launches_itself_and_others_by_name(
    pie: Pie, random_model: Path, tmp_path: Path, mode_flags: list[str]
) -> None:
    other = write_program(tmp_path, "log('other')\nreturn n + 1", "n: int")
    other = other.rename(tmp_path / "other.py")
    program = write_program(
        tmp_path,
        "if n: return n * 10\n"
        "async with spawn(n=4) as own, spawn('other', n=4) as other:\n"
        "    return [await own.wait(), await other.wait()]",
        "n: int = 0",
    )
    flags = ("run", "--model", random_model, *mode_flags)
    done = pie(*flags, "--program", f"other={other}", program)
    assert done.code == 0, done.err
    assert done.out == "[40, 5]\n"
    assert "[info] other" in done.err
    unknown = pie(*flags, program)
    assert unknown.code == 1
    assert "no program 'other'" in unknown.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--allow-http", "ftp://x"], "--allow-http ftp://x cannot be used"),
        (["--program", "x"], "--program takes NAME=PATH, got 'x'"),
        (["--program", "x=none.py"], "there is no program at none.py"),
        (["--program", "x=a", "--program", "x=b"], "two programs are called x"),
    ],
)
def test_options_that_cannot_be_used_are_named(
    pie: Pie, random_model: Path, tmp_path: Path, flags: list[str], message: str
) -> None:
    program = write_program(tmp_path, "return 1")
    done = pie("run", "--model", random_model, *flags, program)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err
