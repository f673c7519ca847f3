"""Programs sent as source: a file, a folder, or a zip of Python modules, known by their hash."""

from __future__ import annotations

import codecs
import hashlib
import io
import stat
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pie_trio.errors import ProgramError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pie_trio.application.wasm.runtime import LinkedComponent

__all__ = [
    "MAX_MODULES",
    "MAX_SOURCE_BYTES",
    "ComponentProgram",
    "Program",
    "SourceProgram",
    "is_archive",
    "load_program",
    "make_program",
    "read_document",
    "read_program",
]

MAX_SOURCE_BYTES = 8 << 20
MAX_MODULES = 1000
MAX_ARCHIVE_ENTRIES = 10_000
MAX_DOCUMENT_BYTES = 256 << 10
DEFAULT_ENTRY = "app.py"

ARCHIVE_BEGINNINGS = (b"PK\x03\x04", b"PK\x05\x06")  # the latter: it is empty
DIRECTORY_ENTRY = b"PK\x01\x02"
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Others may want a lot of memory to unpack a little."""
ENCODINGS = ("utf-8", "ascii", "iso8859", "cp125", "koi8", "euc", "gb", "big5", "shift")
"""Beginnings of the names of those that decode in linear time and give whole characters."""


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


@dataclass(frozen=True, slots=True)
class ComponentProgram:
    """A program that is a component of its own.

    Attributes:
        name: What to call it.
        linked: The component, compiled, with its imports connected.
        digest: SHA-256 of the component.
    """

    name: str
    linked: LinkedComponent
    digest: str


Program = SourceProgram | ComponentProgram


def load_program(path: Path, entry: str = "") -> SourceProgram:
    """Read a program from a ``.py`` file, a folder with an ``app.py``, or a ``.zip`` of one.

    Args:
        path: Of the file or folder.
        entry: The module to run; empty for ``app.py``, or else the only one at the top.

    Raises:
        ProgramError: It is not there, not readable, too large, or has no module to run.
    """
    if not path.exists():
        raise ProgramError(
            f"there is no program at {path}: give a .py file, a folder with an {DEFAULT_ENTRY}, "
            "or a .zip of one"
        )
    if path.is_dir():
        return make_program(path.resolve().name, _read_folder(path), entry)
    if path.suffix == ".zip":
        files = _read_zip(_read_bytes(path), str(path))
        return make_program(path.stem, files, entry)
    if path.suffix == ".py":
        return make_program(path.stem, [(path.name, _read_bytes(path))])
    raise ProgramError(
        f"{path} is not a program: expected a .py file, a folder with an {DEFAULT_ENTRY}, "
        "or a .zip of one"
    )


def is_archive(data: bytes) -> bool:
    """Say whether it begins as a zip archive does."""
    return data.startswith(ARCHIVE_BEGINNINGS)


def read_program(name: str, data: bytes, entry: str = "") -> SourceProgram:
    """Read a program that was sent: a zip archive, or the text of one module.

    Args:
        name: What to call it.
        data: As sent.
        entry: The module to run; empty for ``app.py``, or else the only one at the top.

    Raises:
        ProgramError: It is neither, too large, or has no module to run.
    """
    if is_archive(data):
        return make_program(name, _read_zip(data, name), entry)
    return make_program(name, [(DEFAULT_ENTRY, data)], entry)


def read_document(data: bytes, name: str) -> str | None:
    """Return the text of a file beside the modules of an archive; None if there is none.

    Args:
        data: The archive.
        name: Of a file at its top.

    Raises:
        ProgramError: It cannot be read, or is too large.
    """
    if not is_archive(data):
        return None
    label = "the archive"
    with _open_zip(data, label) as archive:
        try:
            item = archive.getinfo(name)
        except KeyError:
            return None
        if item.file_size > MAX_DOCUMENT_BYTES:
            raise ProgramError(
                f"{name} in {label} has {item.file_size} bytes: at most "
                f"{MAX_DOCUMENT_BYTES} are read"
            )
        return _read_item(archive, item, label).decode(errors="replace")


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


def _read_zip(data: bytes, label: str) -> Iterable[tuple[str, bytes]]:
    """Yield the modules of an archive; nothing of it is ever unpacked to a disk.

    Args:
        data: The archive.
        label: What messages call it.
    """
    with _open_zip(data, label) as archive:
        seen = set[str]()
        for item in archive.infolist():
            path = _checked_path(item, label)
            if item.is_dir() or not path.endswith(".py"):
                continue
            if path in seen:
                raise ProgramError(f"{label} holds {path} twice: which one is meant?")
            seen.add(path)
            yield path, _read_item(archive, item, label)


def _open_zip(data: bytes, label: str) -> zipfile.ZipFile:
    # Looked for here, since zipfile would make an object of each entry before it says how many.
    if data.count(DIRECTORY_ENTRY) > MAX_ARCHIVE_ENTRIES:
        raise ProgramError(
            f"{label} holds more than {MAX_ARCHIVE_ENTRIES} files: send the program alone"
        )
    try:
        return zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ProgramError(
            f"{label} is no zip archive that can be read: {error}"
        ) from error


def _checked_path(item: zipfile.ZipInfo, label: str) -> str:
    name, path = item.filename, PurePosixPath(item.filename)
    if not name:
        raise ProgramError(f"{label} holds a file without a name: pack it again")
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise ProgramError(
            f"{label} holds {name!r}, which is a path outside of the archive"
        )
    if stat.S_ISLNK(item.external_attr >> 16):
        raise ProgramError(f"{label} holds {name!r}, which is a link: send the file")
    return path.as_posix()


def _read_item(archive: zipfile.ZipFile, item: zipfile.ZipInfo, label: str) -> bytes:
    """Return a file's contents; never more of them than the archive's directory says."""
    if item.file_size > MAX_SOURCE_BYTES:
        raise ProgramError(f"{item.filename} in {label} is too large for a program")
    if item.compress_type not in COMPRESSIONS:
        raise ProgramError(
            f"{item.filename} in {label} is packed in a way that is not read: "
            "use deflate, which is what zip does by itself"
        )
    try:
        return archive.read(item)
    except (
        *(zipfile.BadZipFile, zlib.error, EOFError),
        *(NotImplementedError, RuntimeError, ValueError),
    ) as error:
        raise ProgramError(
            f"{label} is no zip archive that can be read: {item.filename}: {error}"
        ) from error


def make_program(
    name: str, files: Iterable[tuple[str, bytes]], entry: str = ""
) -> SourceProgram:
    """Make a program of the contents of its modules by path.

    Raises:
        ProgramError: They are too large, no Python text, or none is the one to run.
    """
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
    entry = _find_entry(name, modules, entry)
    return SourceProgram(name, entry, modules, digest.hexdigest())


def _decode(path: str, data: bytes) -> str:
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        name = codecs.lookup(encoding).name.replace("_", "-")
        if not name.startswith(ENCODINGS):
            raise ProgramError(f"{path} is encoded as {encoding}: save it as UTF-8")
        return io.TextIOWrapper(io.BytesIO(data), encoding).read()
    except (SyntaxError, UnicodeError, LookupError) as error:
        raise ProgramError(f"{path} is not Python text: {error}") from error


def _find_entry(name: str, modules: Mapping[str, str], entry: str) -> str:
    if entry:
        if entry not in modules:
            raise ProgramError(
                f"{name} says that its entry is {entry}, which is not there"
            )
        return entry
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
