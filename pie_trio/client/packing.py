"""Programs as they are sent to a server: a component, or a zip archive with all that they need."""

from __future__ import annotations

import io
import tokenize
import zipfile
from typing import TYPE_CHECKING

from pie_trio.application.authoring.manifest import parse_block, parse_pyproject
from pie_trio.application.authoring.packing import load_packed
from pie_trio.application.authoring.projects import load_project
from pie_trio.errors import ProgramError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["pack_program"]

PYPROJECT = "pyproject.toml"
DOCUMENTS = ("README.md", PYPROJECT)
OLDEST = (1980, 1, 1, 0, 0, 0)
"""The time of every file, so that the same program is the same archive."""


def pack_program(path: Path) -> tuple[str, bytes]:
    """Return the name of a program, and what to send.

    That is an archive of it with its manifest and dependencies, or the component as it is.

    Args:
        path: A ``.py`` file, a folder with an ``app.py``, a ``.zip`` of one, or a ``.wasm``
            component.

    Raises:
        ProgramError: It is none of these, or cannot be read.
        ManifestError: Its manifest is wrong.
    """
    if path.suffix == ".wasm" and not path.is_dir():
        return load_packed(path).name, path.read_bytes()
    project = load_project(path)
    program = project.program
    files = {name: _encode(text) for name, text in program.modules.items()}
    if path.is_dir() or path.suffix == ".zip":
        files |= _read_documents(path)
    elif parse_block(program.modules[program.entry], program.entry) is None:
        files |= _read_manifest_beside(path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in sorted(files.items()):
            item = zipfile.ZipInfo(name, OLDEST)
            item.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(item, data)
    return program.name, buffer.getvalue()


def _encode(text: str) -> bytes:
    """Return a module in the encoding that it says to be in."""
    encoding, _ = tokenize.detect_encoding(io.BytesIO(text.encode()).readline)
    return text.encode(encoding)


def _read_documents(path: Path) -> dict[str, bytes]:
    """Return what is beside the modules of a folder or archive."""
    try:
        if path.is_dir():
            files = [path / name for name in DOCUMENTS]
            return {file.name: file.read_bytes() for file in files if file.is_file()}
        with zipfile.ZipFile(path) as archive:
            names = [name for name in DOCUMENTS if name in archive.namelist()]
            return {name: archive.read(name) for name in names}
    except (OSError, zipfile.BadZipFile) as error:
        raise ProgramError(f"cannot read {path}: {error}") from error


def _read_manifest_beside(path: Path) -> dict[str, bytes]:
    """Return the pyproject.toml beside a lone module, if it is about programs."""
    file = path.parent / PYPROJECT
    try:
        data = file.read_bytes() if file.is_file() else b""
    except OSError as error:
        raise ProgramError(f"cannot read {file}: {error.strerror}") from error
    is_manifest = parse_pyproject(data.decode(), str(file)) is not None
    return {PYPROJECT: data} if is_manifest else {}
