"""Every block of Python in the documentation runs."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import os
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import trio

from pie_trio.application.authoring.manifest import Manifest, parse_block
from pie_trio.application.authoring.projects import load_project
from pie_trio.application.authoring.testing.runs import Order, Sandbox, run_in_sandbox
from pie_trio.application.lifecycle.programs import load_program
from pie_trio.application.run.command import LOCAL_GRANTS, first_leaf
from pie_trio.application.run.setup import load_engine
from pie_trio.config import ModelConfig
from pie_trio.errors import GuestFailedError
from tests.application.outgoing.servers import open_server
from tests.docs.blocks import PAGES, ROOT, Block, find_blocks
from tests.docs.surroundings import HOSTS, OTHERS, answer_requests, make_program

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from pathlib import Path

    from pie_trio.application.authoring.testing.runs import Outcome
    from pie_trio.application.lifecycle.programs import Program
    from pie_trio.application.serving import LoadedEngine

LIMIT_SECONDS = 60
TINY = ROOT / "pie_trio" / "models" / "pie_tiny"
BLOCKS = [b for page in PAGES for b in find_blocks(page, page.read_text(), "python")]
MESSAGES = ["My name is Ivan.", "What is my name?"]
ARGUMENTS = {
    "prompt": "Once upon a time",
    "max_tokens": 16,
    "branches": 2,
    "city": "Oslo",
    "question": "What is the weather in Oslo?",
    "messages": [{"role": "user", "content": "Who are you?"}],
}
"""Given to the programs that have a parameter of that name."""

TESTED = """
from inferlet_py import Context, inferlet, send

@inferlet
async def main(prompt: str = "") -> object:
    if not prompt:
        return {"score": 3}
    async with Context() as ctx:
        await ctx.fill(prompt)
        text = await ctx.generate().text()
    await send(text)
    return text
"""
RECORDING = """
def test_recording(pie):
    pie.record("tests/run.pie")
    pie.run_sync("app.py")
"""
IMPORTS = "from inferlet_py.testing import Pie\n"


def is_kind(block: Block, kind: str) -> bool:
    """Say of which kind a block is: a program, tests, a manifest, or else a fragment."""
    found = {
        "tests": "def test_" in block.text,
        "program": "@inferlet\n" in block.text,
        "manifest": block.text.startswith("# /// "),
    }
    return next((name for name, is_it in found.items() if is_it), "fragment") == kind


def of_kind(kind: str) -> pytest.MarkDecorator:
    found = [
        pytest.param(
            block, marks=[pytest.mark.skip(block.reason)] if block.reason else []
        )
        for block in BLOCKS
        if is_kind(block, kind)
    ]
    assert found, f"no page has a block that is a {kind}"
    return pytest.mark.parametrize("block", found, ids=str)


@pytest.fixture(scope="module")
def engine(
    tmp_path_factory: pytest.TempPathFactory, torch_is_there: None
) -> Generator[LoadedEngine]:
    """pie-tiny with the adapter of the pages."""
    from tests.adapter_factory import write_adapter

    adapter = write_adapter(tmp_path_factory.mktemp("adapters") / "pirate", TINY)
    config = ModelConfig(TINY, "pie-tiny", adapters=(("pirate", adapter),))
    loaded = load_engine(config)
    yield loaded
    loaded.engine.close()


@pytest.fixture(scope="module")
def sandbox() -> Generator[Sandbox]:
    found = Sandbox()
    yield found
    found.close()


@pytest.fixture
def run(
    engine: LoadedEngine, sandbox: Sandbox, tmp_path: Path
) -> Callable[[str, Mapping[str, Any]], Outcome]:
    """Runs a program in Wasm; the hosts of the pages are a server on loopback."""
    programs: dict[str, Program] = {}
    for name, other in OTHERS.items():
        (tmp_path / f"{name}.py").write_text(other)
        programs[name] = load_program(tmp_path / f"{name}.py")
    path = tmp_path / "app.py"

    async def serve_and_run(text: str, arguments: Mapping[str, Any]) -> Outcome:
        async with open_server(answer_requests()) as server:
            origin = f"127.0.0.1:{server.port}"
            for host in HOSTS:
                text = text.replace(f"https://{host}", f"http://{origin}")
            path.write_text(text)
            manifest = Manifest(grants=replace(LOCAL_GRANTS, http=(origin,)))
            order = Order(
                *(path, load_project(path), manifest, arguments, MESSAGES, [engine]),
                *(programs, 0, None, lambda interfaces: interfaces),
            )
            linked = sandbox.link(order)
            with trio.fail_after(LIMIT_SECONDS):
                return await run_in_sandbox(order, linked, sandbox.seed)

    def run_it(text: str, arguments: Mapping[str, Any]) -> Outcome:
        try:
            return trio.run(serve_and_run, text, arguments)
        except BaseExceptionGroup as group:
            error = first_leaf(group)
            if isinstance(error, GuestFailedError):
                error.add_note(error.traceback)
            raise error from None

    return run_it


@of_kind("program")
def test_a_program_runs(
    block: Block, run: Callable[[str, Mapping[str, Any]], Outcome]
) -> None:
    parameters = block.text.partition("async def main(")[2].partition("->")[0]
    arguments = {
        name: value for name, value in ARGUMENTS.items() if f"{name}: " in parameters
    }
    outcome = run(block.text, arguments)
    assert outcome.messages or outcome.result
    if any(name in block.text for name in ("Context", "Chat", "Queue")):
        assert outcome.counts["tokens"]


@of_kind("fragment")
def test_a_fragment_runs(
    block: Block, run: Callable[[str, Mapping[str, Any]], Outcome]
) -> None:
    run(make_program(block.text, block.surroundings), {})


@of_kind("manifest")
def test_a_manifest_in_a_block_is_one(block: Block) -> None:
    manifest = parse_block(block.text, str(block))
    assert manifest is not None
    assert manifest.grants is not None


@of_kind("tests")
def test_tests_pass(block: Block, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(TESTED)
    (tmp_path / "tests").mkdir()
    (tmp_path / "test_first.py").write_text(RECORDING)
    (tmp_path / "test_page.py").write_text(IMPORTS + block.text)
    plugins = importlib.metadata.entry_points(group="pytest11", name="inferlet_py")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", f"--rootdir={tmp_path}"),
            *("-p", "no:cacheprovider", "test_first.py", "test_page.py"),
            *(() if plugins else ("-p", "inferlet_py.testing")),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_SECONDS,
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_a_block_that_fails_is_found(
    run: Callable[[str, Mapping[str, Any]], Outcome],
) -> None:
    with pytest.raises(GuestFailedError, match="no attribute 'no_such_method'"):
        run(make_program("await ctx.no_such_method()\n", ""), {})


def test_what_is_not_tested_says_why() -> None:
    page = ROOT / "README.md"
    text = "<!-- not tested: it needs a moon -->\n```python\nx\n```\n"
    (block,) = find_blocks(page, text, "python")
    assert block.reason == "it needs a moon"
    assert len([b for b in BLOCKS if b.reason]) < len(BLOCKS) / 3


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.reason], ids=str)
def test_what_is_not_run_is_python_and_imports_what_there_is(block: Block) -> None:
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST
    tree = compile(block.text, str(block), "exec", flags)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pie_"):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names)
