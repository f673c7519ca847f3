"""Programs sent as source: a file, a folder, or a zip of Python modules, known by their hash."""

from __future__ import annotations

import hashlib
import io
import tokenize
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pie_trio.errors import ProgramError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["SourceProgram", "load_program"]

MAX_SOURCE_BYTES = 8 << 20
MAX_MODULES = 1000
DEFAULT_ENTRY = "app.py"


@dataclass(frozen=True, slots=True)
class SourceProgram:
    """A program as its author wrote it.

    Attributes:
        name: What to call it: the name of its file or folder.
        entry: Path of the module to run.
        modules: Text of each module by its path, with forward slashes.
        digest: SHA-256 of all of it.
    """

    name: str
    entry: str
    modules: Mapping[str, str]
    digest: str


def load_program(path: Path) -> SourceProgram:
    """Read a program from a ``.py`` file, a folder with an ``app.py``, or a ``.zip`` of one.

    Raises:
        ProgramError: It is not there, not readable, too large, or has no module to run.
    """
    if not path.exists():
        raise ProgramError(
            f"there is no program at {path}: give a .py file, a folder with an {DEFAULT_ENTRY}, "
            "or a .zip of one"
        )
    if path.is_dir():
        return _make_program(path.resolve().name, _read_folder(path))
    if path.suffix == ".zip":
        return _make_program(path.stem, _read_zip(path))
    if path.suffix == ".py":
        return _make_program(path.stem, [(path.name, _read_bytes(path))])
    raise ProgramError(
        f"{path} is not a program: expected a .py file, a folder with an {DEFAULT_ENTRY}, "
        "or a .zip of one"
    )


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ProgramError(f"cannot read {path}: {error.strerror}") from error


def _read_folder(folder: Path) -> Iterable[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*.py")):
        relative = path.relative_to(folder)
        if not any(part.startswith((".", "__pycache__")) for part in relative.parts):
            yield relative.as_posix(), _read_bytes(path)


def _read_zip(path: Path) -> Iterable[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(io.BytesIO(_read_bytes(path))) as archive:
            for item in archive.infolist():
                if item.is_dir() or not item.filename.endswith(".py"):
                    continue
                if item.file_size > MAX_SOURCE_BYTES:
                    raise ProgramError(
                        f"{item.filename} in {path} is too large for a program"
                    )
                yield _checked_path(item.filename, path), archive.read(item)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ProgramError(
            f"{path} is no zip archive that can be read: {error}"
        ) from error


def _checked_path(name: str, archive: Path) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise ProgramError(
            f"{archive} holds {name!r}, which is a path outside of the archive"
        )
    return path.as_posix()


def _make_program(name: str, files: Iterable[tuple[str, bytes]]) -> SourceProgram:
    modules: dict[str, str] = {}
    total = 0
    for path, data in files:
        total += len(data)
        if total > MAX_SOURCE_BYTES or len(modules) >= MAX_MODULES:
            raise ProgramError(
                f"{name} is too large for a program: at most {MAX_MODULES} modules of "
                f"{MAX_SOURCE_BYTES >> 20} MiB together"
            )
        modules[path] = _decode(path, data)
    digest = hashlib.sha256()
    for path, text in sorted(modules.items()):
        digest.update(f"{path}\0{len(text)}\0{text}".encode())
    return SourceProgram(name, _find_entry(name, modules), modules, digest.hexdigest())


def _decode(path: str, data: bytes) -> str:
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        return io.TextIOWrapper(io.BytesIO(data), encoding).read()
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        raise ProgramError(f"{path} is not Python text: {error}") from error


def _find_entry(name: str, modules: Mapping[str, str]) -> str:
    if DEFAULT_ENTRY in modules:
        return DEFAULT_ENTRY
    top = [path for path in modules if "/" not in path]
    if len(top) == 1:
        return top[0]
    raise ProgramError(
        f"{name} has no {DEFAULT_ENTRY}: name the module to run that"
        + (
            f" (it has {', '.join(sorted(top))})"
            if top
            else " (it has no Python modules)"
        )
    )
