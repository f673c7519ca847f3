"""The commands of authors: ``pie new``, ``pie check`` and ``pie build``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_trio.config import WasmConfig, default_cache_directory
from pie_trio.errors import ProgramError

if TYPE_CHECKING:
    import argparse

__all__ = ["add_commands"]

BUILD_SECONDS = 15.0


def add_commands(commands: Any) -> None:
    """Add the commands to the parser of ``pie``."""
    _add_new(commands)
    _add_check(commands)
    _add_build(commands)


def _add_new(commands: Any) -> None:
    parser = commands.add_parser(
        "new",
        help="make a new project",
        description="Make a new project: a program that runs, its pyproject.toml with what it "
        "may do, and a test. Example: pie new poet && pie run poet --branches 3",
    )
    parser.add_argument("folder", type=Path, metavar="NAME", help="a folder to make")
    parser.set_defaults(command=_new)


def _add_check(commands: Any) -> None:
    parser = commands.add_parser(
        "check",
        help="say what of a program would not work in the sandbox",
        description="Say, without running it, what of a program lies outside of the part of "
        "Python that the sandbox has: threads, files, sockets, native code, missing modules. "
        "Exit code 1 if anything would fail. Example: pie check app.py",
    )
    parser.add_argument(
        "program", type=Path, help="a .py file, a folder with an app.py, or a .zip"
    )
    parser.add_argument(
        "--schema",
        action="store_true",
        help="print the JSON Schemas of the program's arguments and result instead; this loads "
        "the program in the sandbox",
    )
    _add_cache(parser)
    parser.set_defaults(command=_check)


def _add_build(commands: Any) -> None:
    parser = commands.add_parser(
        "build",
        help="make a Wasm component of a program",
        description="Make a Wasm component of a program, with its dependencies in its image, "
        "which runs wherever Pie does: pie run poet.wasm. Example: pie build poet -o poet.wasm",
    )
    parser.add_argument(
        "program", type=Path, help="a .py file, a folder with an app.py, or a .zip"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="the component (default: NAME.wasm, here)",
    )
    parser.set_defaults(command=_build)


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="where compiled components are kept (default: $PIE_CACHE_DIR, else ~/.cache/pie)",
    )


def _new(options: argparse.Namespace) -> int:
    from pie_trio.application.authoring.scaffold import make_project

    for path in make_project(options.folder):
        _print(str(path))
    _say(f"try it: pie run {options.folder}")
    return 0


def _check(options: argparse.Namespace) -> int:
    if options.schema:
        from pie_trio.application.authoring.describing import describe_program

        cache = options.cache_dir or default_cache_directory()
        found = describe_program(options.program, WasmConfig(cache_directory=cache))
        _print(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    from pie_trio.application.authoring.checking import check_project
    from pie_trio.application.authoring.projects import load_project

    if options.program.suffix == ".wasm":
        raise ProgramError(f"{options.program} is built already: check its source")
    findings = check_project(load_project(options.program))
    for finding in findings:
        _print(str(finding))
    errors = sum(finding.level == "error" for finding in findings)
    if errors:
        _say(f"{errors} of these would fail in the sandbox")
        return 1
    _say(
        "everything else is in the sandbox"
        if findings
        else "all of it is in the sandbox"
    )
    return 0


def _build(options: argparse.Namespace) -> int:
    from pie_trio.application.authoring.building import build_component
    from pie_trio.application.authoring.projects import load_project
    from pie_trio.application.run.console import long_step

    if options.program.suffix == ".wasm":
        raise ProgramError(f"{options.program} is built already: name its source")
    project = load_project(options.program)
    target = options.output or Path(f"{project.program.name}.wasm")
    if target.is_dir() or not target.resolve().parent.is_dir():
        raise ProgramError(f"--output {target}: name a file in a folder that is there")
    if not os.access(target.resolve().parent, os.W_OK):
        raise ProgramError(f"--output {target}: its folder cannot be written to")
    with long_step(f"building {target}", estimate_seconds=BUILD_SECONDS):
        size = build_component(project, target)
    _say(f"{target}, {size / 2**20:.1f} MiB: run it with pie run {target}")
    return 0


def _print(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - it is the command line


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - it is the command line
