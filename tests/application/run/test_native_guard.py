"""Native mode refuses what the sandbox refuses, with the same errors."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from pie_trio.application.authoring.projects import load_project
from pie_trio.application.authoring.subset import REFUSALS, load_subset
from pie_trio.application.run.native_modules import importable

if TYPE_CHECKING:
    from pathlib import Path

REFUSED = [refusal for refusal in REFUSALS if refusal.event]
APP = """
{header}
from inferlet_py import inferlet

@inferlet
async def main() -> None: ...

def call(code):
    exec(compile(code, __file__, "exec"), {{"__file__": __file__}})

def load():
    import {module}
"""


def open_program(folder: Path, *, header: str = "", module: str = "json") -> Any:
    file = folder / "app.py"
    file.write_text(APP.format(header=header, module=module))
    return importable(load_project(file), file)


@pytest.mark.parametrize("refusal", REFUSED, ids=[refusal.name for refusal in REFUSED])
def test_a_call_fails_as_in_the_sandbox(tmp_path: Path, refusal: Any) -> None:
    kind, arguments = load_subset().errors[refusal.name]
    with open_program(tmp_path) as load:
        module = load()
        with pytest.raises(Exception) as error:  # noqa: PT011  # many kinds
            module.call(refusal.probe)
    assert type(error.value).__name__ == kind
    given = [a for a in error.value.args if isinstance(a, int | str)]
    assert given[: len(arguments)] == list(arguments)


@pytest.mark.parametrize("module", ["sqlite3", "numpy", "asyncio", "email.mime.text"])
def test_a_module_that_the_sandbox_lacks_is_not_found(
    tmp_path: Path, module: str
) -> None:
    with open_program(tmp_path, module=module) as load:
        program = load()
        with pytest.raises(ModuleNotFoundError, match=f"No module named '{module}'"):
            program.load()


def test_modules_that_the_sandbox_has_are_found(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("import json\nfrom os import path\n")
    (tmp_path / "app.py").write_text(
        "import helper, tomllib\nfrom inferlet_py import inferlet, send\n"
        "@inferlet\nasync def main() -> None: ...\n"
    )
    with importable(load_project(tmp_path), tmp_path) as load:
        assert load().helper.json is sys.modules["json"]
    assert "helper" not in sys.modules, "the next run imports it anew"


def test_what_the_program_is_not_behind_goes_through(tmp_path: Path) -> None:
    with open_program(tmp_path, header="import traceback, linecache") as load:
        module = load()
        (tmp_path / "x").write_text("from outside")  # this test is not the program
        assert (tmp_path / "x").read_text() == "from outside"
        module.call(
            "import linecache; linecache.checkcache(); linecache.getline('x', 1)"
        )
        done = threading.Event()
        threading.Thread(target=done.set).start()
        assert done.wait(60)
    assert os.listdir(tmp_path), "and afterwards everything is as before"  # noqa: PTH208
