"""``pie new``: a project that runs, with a test that passes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pie_trio.errors import ProgramError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["make_project"]

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")

APP = '''"""{name}: an inferlet."""

from inferlet_py import Context, TopP, inferlet, open_nursery, send


@inferlet
async def main(
    prompt: str = "Once upon a time", branches: int = 2, max_tokens: int = 32
) -> list[str]:
    """Continue a prompt in several ways at once.

    Args:
        prompt: The text to continue.
        branches: How many ways.
        max_tokens: Most tokens of each.
    """
    texts: list[str] = [""] * branches
    async with Context() as root:
        await root.fill(prompt)

        async def branch(number: int) -> None:
            sampler = TopP(0.9, temperature=0.7, seed=number)
            async with root.fork() as ctx:
                async for chunk in ctx.generate(max_tokens=max_tokens, sampler=sampler):
                    texts[number] += chunk.text
            await send(f"{{number}}:{{texts[number]}}\\n")

        async with open_nursery() as nursery:
            for number in range(branches):
                nursery.start_soon(branch, number)
    return texts
'''

PYPROJECT = """[project]
name = "{name}"
version = "0.1.0"
description = "An inferlet"
requires-python = ">=3.11"
dependencies = ["inferlet-py"]           # pure Python distributions; they are bundled

[tool.pie]
entry = "app.py"

[tool.pie.grants]                        # what the program may do, wherever it runs
http = []                                # hosts, as "api.example.com"

[tool.pie.limits]
wall_seconds = 300

[tool.pytest]
minversion = "9.0"
testpaths = ["tests"]
"""

README = """# {name}

An inferlet: a program that drives the generation of a language model itself.

```console
$ pie run . --prompt "Once upon a time" --branches 3
$ pie run --watch . --branches 3         # runs again whenever a file is saved
$ pie check .                            # what would not work in the sandbox?
$ pytest                                 # on a scripted model, in no time
$ pie build . -o {name}.wasm
```
"""

TEST = '''"""The program on a scripted model: what it says to a prompt is known."""

import pytest

from inferlet_py.testing import Pie


@pytest.mark.parametrize("mode", ["wasm", "native"])
def test_each_branch_continues_the_prompt(pie: Pie, mode: str) -> None:
    pie.script({{"Once upon a time": " there was a test."}})

    run = pie.run_sync("app.py", mode=mode, branches=2, max_tokens=40)

    assert run.result == [" there was a test."] * 2
    assert sorted(run.messages) == ["0: there was a test.\\n", "1: there was a test.\\n"]
    assert max(run.batch_sizes) == 2, "the branches share batches"
'''

GITIGNORE = "__pycache__/\n*.wasm\n.venv/\n"


def make_project(folder: Path) -> list[Path]:
    """Write a new project into a folder, which must not be there or be empty.

    Returns:
        The files.

    Raises:
        ProgramError: There is something in the folder, its name cannot be that of a project, or
            it cannot be written.
    """
    name = folder.resolve().name
    if not _NAME.fullmatch(name):
        raise ProgramError(
            f"{name!r} cannot be the name of a project: use letters, digits, - and _, and begin "
            "with a letter"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ProgramError(
            f"there is something at {folder} already: choose another name"
        )
    contents = {
        "app.py": APP,
        "pyproject.toml": PYPROJECT,
        "README.md": README,
        ".gitignore": GITIGNORE,
        "tests/test_app.py": TEST,
    }
    try:
        for path, text in contents.items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text.format(name=name))
    except OSError as error:
        raise ProgramError(f"cannot write to {folder}: {error.strerror}") from error
    return [folder / path for path in contents]
