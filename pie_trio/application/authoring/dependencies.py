"""The modules of the distributions that a program needs, as they are installed beside Pie.

What is not installed here is not looked for elsewhere: then a program has the same versions in
Wasm, natively and in its author's editor.
"""

from __future__ import annotations

import importlib.metadata
import io
import tokenize
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from pie_trio.errors import ProgramError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["collect_modules", "find_native_code"]

SDK = "inferlet-py"
NATIVE_SUFFIXES = (".so", ".pyd", ".dylib", ".dll")
GUEST = {
    "python_version": "3.14",
    "python_full_version": "3.14.0",
    "sys_platform": "wasi",
    "platform_system": "wasi",
    "platform_machine": "wasm32",
    "os_name": "posix",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
}
"""What markers as ``; sys_platform == "linux"`` are about: the guest."""


def collect_modules(requirements: Iterable[str]) -> dict[str, str]:
    """Return the text of each module of some distributions, and of all that these need.

    Args:
        requirements: As pip takes them.

    Returns:
        By path, with forward slashes.

    Raises:
        ProgramError: One is not installed, in another version, or has native code.
    """
    modules: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    todo = [(_parse(text, "the program"), "the program") for text in requirements]
    while todo:
        requirement, needed_by = todo.pop()
        name = canonicalize_name(requirement.name)
        extras = ["", *sorted(requirement.extras)]
        if name == SDK or (requirement.marker and not _applies(requirement, "")):
            continue
        distribution = _find(requirement, needed_by)
        for extra in extras:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for text in distribution.requires or ():
                inner = _parse(text, name)
                if _applies(inner, extra):
                    inner.marker = None
                    todo.append((inner, name))
        if not any(path in modules for path, _ in _paths_of(distribution)):
            modules.update(_read(distribution))
    return modules


def _parse(text: str, where: str) -> Requirement:
    try:
        return Requirement(text)
    except InvalidRequirement as error:
        raise ProgramError(
            f"{where} needs {text!r}, which is no requirement: {error}"
        ) from error


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(
        {**GUEST, "extra": extra}
    )


def _find(requirement: Requirement, needed_by: str) -> importlib.metadata.Distribution:
    try:
        found = importlib.metadata.distribution(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        raise ProgramError(
            f"{needed_by} needs {requirement}, which is not installed: "
            f'say pip install "{requirement}"'
        ) from None
    if not requirement.specifier.contains(found.version, prereleases=True):
        raise ProgramError(
            f"{needed_by} needs {requirement}, but {found.version} is installed: "
            f'say pip install "{requirement}"'
        )
    return found


def _paths_of(
    distribution: importlib.metadata.Distribution,
) -> Iterator[tuple[str, importlib.metadata.PackagePath]]:
    for path in distribution.files or ():
        parts = PurePosixPath(path).parts
        is_outside = ".." in parts or PurePosixPath(path).is_absolute()
        if path.suffix == ".py" and not is_outside and "__pycache__" not in parts:
            yield PurePosixPath(path).as_posix(), path


def find_native_code(distribution: importlib.metadata.Distribution) -> str:
    """Return the path of a file that cannot run in Wasm; empty if there is none."""
    files = distribution.files or ()
    native = (str(path) for path in files if path.name.endswith(NATIVE_SUFFIXES))
    return next(native, "")


def _read(distribution: importlib.metadata.Distribution) -> dict[str, str]:
    name = distribution.metadata["Name"]
    if native := find_native_code(distribution):
        raise ProgramError(
            f"{name} has native code ({native}), which cannot run in Wasm: use a distribution "
            "in Python alone, or do this work outside and ask for it with http_request"
        )
    modules: dict[str, str] = {}
    for relative, path in _paths_of(distribution):
        if relative.startswith("__editable__"):
            raise ProgramError(
                f"{name} is installed as editable, so its modules cannot be found: "
                "say pip install without -e"
            )
        data = Path(str(path.locate())).read_bytes()
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        modules[relative] = io.TextIOWrapper(io.BytesIO(data), encoding).read()
    if not modules:
        raise ProgramError(
            f"{name} is installed, but no modules of it were found: install it again"
        )
    return modules
