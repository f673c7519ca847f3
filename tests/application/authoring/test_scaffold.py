"""`pie new` makes a project that runs at once, and whose own test passes."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pie_trio.application.authoring.checking import check_project
from pie_trio.application.authoring.projects import load_project
from pie_trio.application.authoring.scaffold import make_project
from pie_trio.errors import ProgramError

if TYPE_CHECKING:
    from pathlib import Path

    from pie_trio.application.authoring.testing.pie import Pie
    from pie_trio.application.wasm.runtime import LinkedComponent

LIMIT_SECONDS = 200


@pytest.fixture
def project(tmp_path: Path) -> Path:
    make_project(tmp_path / "poet")
    return tmp_path / "poet"


def test_a_new_project_has_a_name_and_nothing_to_complain_of(project: Path) -> None:
    found = load_project(project)
    assert found.program.name == "poet"
    assert sorted(found.program.modules) == ["app.py"]
    assert check_project(found) == []


def test_a_new_project_runs_at_once(project: Path, pie: Pie) -> None:
    pie.script({"Once": " more."})
    run = pie.run_sync(project, prompt="Once", branches=3)
    assert run.result == [" more."] * 3


def test_the_test_of_a_new_project_passes(
    project: Path, language: LinkedComponent
) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    if "inferlet_py" not in _plugins():
        command += ["-p", "inferlet_py.testing"]
    done = subprocess.run(
        command,
        cwd=project,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def _plugins() -> set[str]:
    from importlib.metadata import entry_points

    return {entry.name for entry in entry_points(group="pytest11")}


@pytest.mark.parametrize("name", ["1poet", "a b", "p.t"])
def test_a_bad_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProgramError, match="cannot be the name of a project"):
        make_project(tmp_path / name)


def test_nothing_is_overwritten(project: Path) -> None:
    with pytest.raises(ProgramError, match=r"something at .* already"):
        make_project(project)
