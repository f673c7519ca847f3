"""`pie build`: a component gives the results of its source; what cannot be in it is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pie_trio.application.authoring.building import (
    build_component,
    imports_from_elsewhere,
)
from pie_trio.application.authoring.packing import load_packed
from pie_trio.application.authoring.projects import load_project
from pie_trio.errors import BuildError

if TYPE_CHECKING:
    from pathlib import Path

    from pie_trio.application.authoring.testing.pie import Pie

APP = '''
"""A program with modules of its own, a late import, and something at its top."""
from inferlet_py import Context, Greedy, inferlet, send
import helper

STARTED = []

@inferlet
async def main(prompt: str = "Say") -> dict[str, object]:
    import plistlib
    STARTED.append(1)
    async with Context() as ctx:
        await ctx.fill(prompt)
        text = await ctx.generate(max_tokens=50, sampler=Greedy()).text()
    await send(text)
    return {"words": helper.words(text), "started": STARTED, "has": plistlib.__name__}
'''
HELPER = "def words(text):\n    from helper2 import split\n    return split(text)\n"
MANIFEST = "[project]\nname = 'poet'\n[tool.pie]\n[tool.pie.limits]\nwall_seconds = 9\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "helper.py").write_text(HELPER)
    (tmp_path / "helper2.py").write_text("def split(text):\n    return text.split()\n")
    (tmp_path / "pyproject.toml").write_text(MANIFEST)
    return tmp_path


def test_a_component_gives_the_results_of_its_source(folder: Path, pie: Pie) -> None:
    target = folder / "poet.wasm"
    size = build_component(load_project(folder), target)
    assert size == target.stat().st_size
    assert load_packed(target).manifest.limits.wall_seconds == 9

    pie.script({"Say": " one two"})
    built = pie.run_sync(target)
    assert built.result == {
        "words": ["one", "two"],
        "started": [1],
        "has": "plistlib",
    }
    # The source lacks what the language component has not imported; else they are the same.
    (folder / "app.py").write_text(APP.replace("plistlib", "tomllib"))
    source = pie.run_sync(folder)
    assert source.result == {**built.result, "has": "tomllib"}
    assert source.messages == built.messages
    assert source.counts == built.counts


def test_a_module_that_wasm_lacks_is_named_with_its_line(folder: Path) -> None:
    (folder / "helper2.py").write_text("def split(text):\n    import tkinter\n")
    with pytest.raises(BuildError, match=r"helper2\.py, line 2, imports tkinter: "):
        build_component(load_project(folder), folder / "x.wasm")
    assert not (folder / "x.wasm").exists()


def test_native_code_is_refused_by_the_name_of_its_distribution(folder: Path) -> None:
    (folder / "helper2.py").write_text("def split(text):\n    import numpy.linalg\n")
    with pytest.raises(
        BuildError,
        match=r"helper2\.py, line 2, imports numpy\.linalg: it belongs to numpy, which has",
    ):
        build_component(load_project(folder), folder / "poet.wasm")


def test_a_distribution_that_is_no_dependency_is_named(folder: Path) -> None:
    (folder / "helper2.py").write_text("import pytest\n")
    with pytest.raises(BuildError, match=r"belongs to pytest, .*\[project\] depend"):
        build_component(load_project(folder), folder / "poet.wasm")


@pytest.mark.parametrize(
    "line", ["importlib.import_module(name)", "__import__(name)", "load('a' + name)"]
)
def test_a_name_that_only_the_program_knows_is_refused(folder: Path, line: str) -> None:
    (folder / "helper.py").write_text(
        "import importlib\nfrom importlib import import_module as load\n"
        f"def words(name):\n    {line}\n"
    )
    with pytest.raises(BuildError, match=r"helper\.py, line 4, imports a module whose"):
        imports_from_elsewhere(load_project(folder))


def test_what_a_function_imports_is_imported_ahead(folder: Path) -> None:
    found = {i.name: i for i in imports_from_elsewhere(load_project(folder))}
    assert found["plistlib"].is_lazy
    assert not found["plistlib"].is_optional
    assert "helper2" not in found, "the program's own modules come with it"


def test_a_syntax_error_is_named(folder: Path) -> None:
    (folder / "helper.py").write_text("def (\n")
    with pytest.raises(BuildError, match=r"helper\.py, line 1: invalid syntax"):
        imports_from_elsewhere(load_project(folder))
