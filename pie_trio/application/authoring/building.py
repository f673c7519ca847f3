"""``pie build``: a component of one program, with the modules that it needs in its image."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pie_trio.application.authoring.checking import find_owner
from pie_trio.application.authoring.imports import (
    Import,
    find_imports,
    is_inside,
    module_names,
)
from pie_trio.application.authoring.packing import add_manifest
from pie_trio.application.lifecycle.language import RUN_COMPONENTIZE, SDK
from pie_trio.application.wasm.compile_cache import write_whole
from pie_trio.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pie_trio.application.authoring.projects import Project

__all__ = ["build_component", "imports_from_elsewhere"]

APP_MODULE = "inferlet_app"
MARK = "pie build: "  # as in inferlet_py/_bundled.py, which is importable in Wasm only
APP = """from inferlet_py._bundled import bundle

Program = bundle({entry!r}, {modules!r}, {imports!r})
"""


def build_component(project: Project, target: Path) -> int:
    """Build a program and write its component. Blocks for some 15 seconds.

    Args:
        project: The program, with its dependencies.
        target: Of the component.

    Returns:
        The size of the component in bytes.

    Raises:
        BuildError: A module cannot be found, or belongs to a distribution that is not bundled,
            or componentize-py fails.
        CacheError: The component cannot be written.
    """
    wanted = imports_from_elsewhere(project)
    bundled = module_names(project.program.modules)
    for item in wanted:
        if item.is_optional or is_inside(item.name, bundled):
            continue
        if (why := find_owner(item.name)) is not None:
            raise BuildError(f"{item.where} imports {item.name}: {why}")
    with tempfile.TemporaryDirectory(prefix="pie-build-") as name:
        folder = Path(name)
        (folder / "inferlet_py").mkdir()
        for path in SDK.glob("_*.py"):
            shutil.copy(path, folder / "inferlet_py")
        modules = project.program.modules
        for path_text, text in modules.items():
            if path_text not in project.own:
                file = folder / path_text
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
        app = APP.format(
            entry=project.program.entry,
            modules={path: modules[path] for path in sorted(project.own)},
            imports=[(i.name, i.where, i.is_optional) for i in wanted],
        )
        (folder / f"{APP_MODULE}.py").write_text(app, encoding="utf-8")
        built = folder / "program.wasm"
        _componentize(folder, built)
        data = add_manifest(built.read_bytes(), project.manifest)
    write_whole(target, data)
    return len(data)


def imports_from_elsewhere(project: Project) -> list[Import]:
    """Return what must be imported while the image is filled: all that is not the program's own.

    A component keeps the modules that were imported then. One that a function imports later
    would be missing.

    Raises:
        BuildError: A function imports what only the running program knows.
    """
    own = module_names(project.own)
    found: dict[str, Import] = {}
    for path, text in project.program.modules.items():
        is_own = path in project.own
        if not is_own and path.endswith("__main__.py"):
            continue
        for item in _imports_of(path, text, is_own=is_own):
            if not item.name:
                if is_own:
                    raise BuildError(
                        f"{item.where} imports a module whose name only the running program "
                        "knows, so it would be missing in the component: write the name as a "
                        "literal text, or import it at the top of the file"
                    )
                continue
            if is_inside(item.name, own) or is_inside(item.name, ("inferlet_py",)):
                continue
            # What dependencies import in functions, or instead, is often for other systems.
            is_elsewhere = item.is_lazy or item.is_fallback
            is_optional = item.is_optional or (not is_own and is_elsewhere)
            known = found.get(item.name)
            if known is None or (known.is_optional and not is_optional):
                found[item.name] = Import(
                    item.name, item.path, item.line, item.is_lazy, is_optional
                )
    return list(found.values())


def _imports_of(path: str, text: str, *, is_own: bool) -> Iterable[Import]:
    try:
        return find_imports(path, text)
    except SyntaxError as error:
        if is_own:
            raise BuildError(f"{path}, line {error.lineno}: {error.msg}") from error
        return ()  # a dependency's module for another version of Python


def _componentize(folder: Path, built: Path) -> None:
    command: Sequence[str] = [
        *(sys.executable, "-c", RUN_COMPONENTIZE),
        *("-d", str(SDK / "wit"), "-w", "inferlet"),
        *("componentize", "-p", str(folder), APP_MODULE, "-o", str(built)),
    ]
    environment = {**os.environ, "RUST_BACKTRACE": "0"}
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            output, error = process.communicate()
        finally:
            process.kill()  # after Ctrl-C nothing may be left; else it has ended
    if process.returncode == 0 and built.exists():
        return
    output = (error or output).strip()
    if (match := re.search(rf"{MARK}(.*)", output)) is not None:
        raise BuildError(
            f"{match[1]}. It is not in the sandbox: `pie check` tells what a program can import"
        )
    raise BuildError(f"componentize-py could not build the program:\n{output}")
