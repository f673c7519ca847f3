"""A project of several files: its search, its own tests, and its component."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Literal

import pytest

from pie_trio.application.authoring.building import build_component
from pie_trio.application.authoring.checking import check_project
from pie_trio.application.authoring.projects import load_project
from tests.examples.running import EXAMPLES, ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from pie_trio.application.authoring.testing.pie import Pie
    from tests.examples.running import Examples

FOLDER = EXAMPLES / "multi_file_project"
STORY = "Once upon a time"
LIMIT_SECONDS = 300

EVERYTHING = """
import math
from inferlet_py import Context, inferlet

@inferlet
async def main(prompt: str, length: int, branches: int) -> list[float]:
    async def best(ctx: Context, left: int) -> float:
        if left == 0 or ctx.token_ids[-1] in ctx.model.info.eos_tokens:
            return 0.0
        found = []
        for token, prob in await ctx.forward(top=branches):
            with ctx.fork() as child:
                child.append([token])
                found.append(math.log(prob) + await best(child, left - 1))
        return max(found)

    async with Context() as root:
        await root.fill(prompt)
        return [await best(root, length)]
"""

GREEDY = """
from inferlet_py import Context, inferlet

@inferlet
async def main(prompt: str, length: int) -> float:
    async with Context() as ctx:
        await ctx.fill(prompt)
        generation = ctx.generate(max_tokens=length, logprobs=True)
        return sum([sum(chunk.logprobs) async for chunk in generation])
"""


def test_nothing_is_likelier_than_what_is_found(
    examples: Examples, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(EVERYTHING)
    options: dict[str, Any] = {"prompt": STORY, "length": 4, "branches": 3}
    found = examples.run("multi_file_project", **options).result
    (largest,) = examples.run(str(tmp_path), **options).result
    assert found["is_certain"]
    assert found["logprob"] == pytest.approx(largest, abs=1e-4)


def test_greedy_decoding_misses_what_is_found(
    examples: Examples, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(GREEDY)
    options: dict[str, Any] = {"prompt": STORY, "length": 20}
    found = examples.run("multi_file_project", **options).result
    greedy = examples.run(str(tmp_path), **options).result
    assert found["logprob"] > greedy + 5.0
    assert found["text"] != examples.greedy(STORY, 20)


def test_beginnings_that_are_looked_into_at_once_share_batches(
    examples: Examples,
) -> None:
    one, four = (
        examples.run("multi_file_project", prompt=STORY, width=width)
        for width in (1, 4)
    )
    assert one.result["text"] == four.result["text"]
    assert four.use.steps < 0.5 * one.use.steps


def test_what_had_to_be_dropped_is_said(examples: Examples) -> None:
    run = examples.run("multi_file_project", prompt=STORY, capacity=4, width=1)
    assert not run.result["is_certain"]


def test_it_finds_the_same_in_both_modes(
    tiny: Pie, mode: Literal["wasm", "native"]
) -> None:
    run = tiny.run_sync("multi_file_project", length=6, mode=mode)
    assert run.result["text"] == ", there was a cu"


def test_its_modules_and_its_dependency_are_the_program() -> None:
    project = load_project(FOLDER)
    assert project.own == {
        "app.py",
        "likeliest/__init__.py",
        "likeliest/frontier.py",
        "likeliest/search.py",
    }
    assert "sortedcontainers/sortedlist.py" in project.program.modules
    assert check_project(project) == []


def test_its_own_tests_pass() -> None:
    plugins = importlib.metadata.entry_points(group="pytest11", name="inferlet_py")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *(() if plugins else ("-p", "inferlet_py.testing")),
        ],
        cwd=FOLDER,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_SECONDS,
    )
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout


@pytest.mark.slow
def test_its_component_brings_the_dependency_along(tiny: Pie, tmp_path: Path) -> None:
    target = tmp_path / "likeliest.wasm"
    build_component(load_project(FOLDER), target)
    run = tiny.run_sync(target, length=6)
    assert run.result["text"] == ", there was a cu"
