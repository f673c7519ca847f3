"""The program of a recording: found by its path, known by its digest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pie_trio.application.authoring.packing import PackedProgram, load_packed
from pie_trio.application.authoring.projects import Project, load_project

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["digest_of", "find_program"]


def find_program(path: Path) -> Project | PackedProgram:
    """Read the program at a path: a component, or source.

    Raises:
        ProgramError: There is none.
    """
    return load_packed(path) if path.suffix == ".wasm" else load_project(path)


def digest_of(found: Project | PackedProgram) -> str:
    """Return the SHA-256 by which a program is known."""
    return found.program.digest if isinstance(found, Project) else found.digest
