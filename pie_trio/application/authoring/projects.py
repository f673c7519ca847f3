"""Projects: a program with its manifest and the distributions that it needs."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pie_trio.application.authoring.dependencies import collect_modules
from pie_trio.application.authoring.manifest import (
    Manifest,
    parse_block,
    parse_pyproject,
)
from pie_trio.application.lifecycle.programs import (
    MAX_MODULES,
    MAX_SOURCE_BYTES,
    SourceProgram,
    load_program,
)
from pie_trio.errors import ManifestError, ProgramError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Project", "load_project"]

PYPROJECT = "pyproject.toml"


@dataclass(frozen=True, slots=True)
class Project:
    """A program with what it says of itself.

    Attributes:
        program: With the modules of its dependencies.
        manifest: Empty if it says nothing.
        own: Paths of the modules that are the project's own.
        folder: Where these are; None for an archive.
    """

    program: SourceProgram
    manifest: Manifest
    own: frozenset[str]
    folder: Path | None


def load_project(path: Path) -> Project:
    """Read a program, its manifest and the modules of its dependencies.

    The manifest of a folder or archive is its pyproject.toml; that of a single file is a block
    in it, else the pyproject.toml beside it, if that has a ``[tool.pie]``.

    Raises:
        ProgramError: It cannot be read, or a dependency is missing or cannot run in Wasm.
        ManifestError: The manifest is wrong.
    """
    program = load_program(path, _entry_of(path))
    manifest = _read_manifest(path, program) or Manifest()
    modules = dict(program.modules)
    if path.is_dir() and (path / PYPROJECT).exists():
        modules = {name: text for name, text in modules.items() if not _is_test(name)}
    own = frozenset(modules)
    if manifest.dependencies:
        modules = {**collect_modules(manifest.dependencies), **modules}
    if modules.keys() != program.modules.keys():
        program = _with_modules(program, modules)
    if manifest.name:
        program = replace(program, name=manifest.name)
    folder = path if path.is_dir() else path.parent
    return Project(program, manifest, own, None if path.suffix == ".zip" else folder)


def _entry_of(path: Path) -> str:
    """Return the entry that a project names, before its modules are read."""
    text = _read_pyproject(path) if path.is_dir() or path.suffix == ".zip" else None
    manifest = parse_pyproject(text, _where(path)) if text else None
    return manifest.entry if manifest else ""


def _read_manifest(path: Path, program: SourceProgram) -> Manifest | None:
    if path.suffix == ".py" and not path.is_dir():
        block = parse_block(program.modules[program.entry], path.name)
        if block is not None:
            return block
        text = _read_pyproject(path.parent)
    else:
        text = _read_pyproject(path)
        block = parse_block(program.modules[program.entry], program.entry)
        if block is not None and text and parse_pyproject(text, _where(path)):
            raise ManifestError(
                f"{path} has a block in {program.entry} and a [tool.pie] in its {PYPROJECT}: "
                "keep one"
            )
        if block is not None:
            return block
    return parse_pyproject(text, _where(path)) if text else None


def _where(path: Path) -> str:
    is_inside = path.is_dir() or path.suffix == ".zip"
    return str((path if is_inside else path.parent) / PYPROJECT)


def _read_pyproject(path: Path) -> str | None:
    try:
        if path.suffix == ".zip" and path.is_file():
            with zipfile.ZipFile(path) as archive:
                return archive.read(PYPROJECT).decode()
        return (path / PYPROJECT).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError, KeyError):
        return None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ManifestError(f"cannot read {_where(path)}: {error}") from error


def _is_test(path: str) -> bool:
    """Say whether a module of a project is for pytest, which a program has no use for."""
    *folders, name = path.split("/")
    return (
        "tests" in folders
        or name == "conftest.py"
        or (name.startswith("test_") and not folders)
    )


def _with_modules(program: SourceProgram, modules: Mapping[str, str]) -> SourceProgram:
    total = sum(len(text) for text in modules.values())
    if len(modules) > MAX_MODULES or total > MAX_SOURCE_BYTES:
        raise ProgramError(
            f"{program.name} is too large with its dependencies: {len(modules)} modules of "
            f"{total >> 20} MiB, at most {MAX_MODULES} of {MAX_SOURCE_BYTES >> 20} MiB are "
            "allowed: `pie build` makes a component of it"
        )
    digest = hashlib.sha256()
    for path, text in sorted(modules.items()):
        digest.update(f"{path}\0{len(text)}\0{text}".encode())
    return replace(program, modules=modules, digest=digest.hexdigest())
