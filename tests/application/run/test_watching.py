"""`pie run --watch`: which changes count, and that a change leads to another run."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pie_trio.application.run.watching import Files

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from pie_trio.application.wasm.runtime import LinkedComponent

APP = """
from inferlet_py import inferlet, send, sleep_forever

@inferlet
async def main(name: str = "x") -> None:
    await send(f"{name} {VERSION}\\n")
    await sleep_forever()
"""
LIMIT_SECONDS = 120


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "app.py").write_text("x = 2"),
        lambda folder: (folder / "lib" / "new.py").write_text(""),
        lambda folder: (folder / "lib" / "old.py").unlink(),
        lambda folder: (folder / "pyproject.toml").write_text(""),
        lambda folder: (folder / "t").replace(folder / "app.py"),
    ],
    ids=["write", "add", "remove", "manifest", "replace"],
)
def test_a_change_of_a_file_is_noticed(tmp_path: Path, change: object) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "app.py").write_text("x = 1 ")
    (tmp_path / "lib" / "old.py").write_text("")
    (tmp_path / "t").write_text("x = 3 ")
    files = Files(tmp_path)
    assert not files.have_changed()
    assert callable(change)
    change(tmp_path)
    assert files.have_changed()
    files.look_again()
    assert not files.have_changed()


def test_what_is_hidden_does_not_count(tmp_path: Path) -> None:
    (tmp_path / ".venv").mkdir()
    (tmp_path / "app.py").write_text("")
    files = Files(tmp_path)
    (tmp_path / ".venv" / "x.py").write_text("")
    assert not files.have_changed()


@pytest.fixture
def watching(
    tmp_path: Path, language: LinkedComponent, torch_is_there: None
) -> Generator[subprocess.Popen[str]]:
    """A program under ``pie run --watch``."""
    (tmp_path / "app.py").write_text(f"VERSION = 1\n{APP}")
    command = [sys.executable, "-m", "pie_trio", "run", "--watch"]
    with subprocess.Popen(
        [*command, str(tmp_path / "app.py"), "--name", "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PIE_MODEL": ""},
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(LIMIT_SECONDS)


def lines_until(process: subprocess.Popen[str], wanted: str) -> list[str]:
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if wanted in line:
            return lines
    pytest.fail(f"no {wanted!r} in {lines}")


def test_a_saved_file_runs_again_and_a_wrong_one_is_told(
    watching: subprocess.Popen[str], tmp_path: Path
) -> None:
    lines_until(watching, "run 1")
    (tmp_path / "app.py").write_text(f"VERSION = 2\n{APP}")
    lines_until(watching, "run 2")
    (tmp_path / "app.py").write_text(f"VERSION = (\n{APP}")
    lines_until(watching, "SyntaxError")
    (tmp_path / "app.py").write_text(f"{APP}")
    lines_until(watching, "NameError: name 'VERSION' is not defined")
    (tmp_path / "pyproject.toml").write_text("[tool.pie]\nnam = 'x'\n")
    lines_until(watching, "has no key 'nam'")
    (tmp_path / "pyproject.toml").unlink()
    (tmp_path / "app.py").write_text(f"VERSION = 3\n{APP}")
    lines_until(watching, "run 3")
