"""The modules of a program that runs natively: found in its folder, guarded as in the sandbox."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from pie_trio.application.authoring.imports import module_names
from pie_trio.application.run.native_guard import GuardedLoader, NativeGuard, guarding

if TYPE_CHECKING:
    import types
    from collections.abc import Callable, Generator, Iterable, Sequence

    from pie_trio.application.authoring.projects import Project

__all__ = ["importable"]


@contextlib.contextmanager
def importable(
    project: Project, path: Path
) -> Generator[Callable[[], types.ModuleType]]:
    """Make a program's modules importable; yields what imports its entry.

    In the block, what the thread does on behalf of the program is refused where the sandbox
    would refuse it.
    """
    program = project.program
    with contextlib.ExitStack() as stack:
        if path.is_dir():
            folder = path.resolve()
        elif path.suffix == ".zip":
            temporary = tempfile.TemporaryDirectory(prefix="pie-program-")
            folder = Path(stack.enter_context(temporary)).resolve()
            with zipfile.ZipFile(path) as archive:
                archive.extractall(folder)  # its paths were checked when it was read
        else:
            folder = path.resolve().parent
        before = set(sys.modules)
        stack.callback(_forget, before, project.own)
        files = {str(folder / path) for path in project.own}
        guard = NativeGuard(files, module_names(program.modules))
        finder = _ProgramFinder(folder, project.own, guard)
        sys.meta_path.insert(0, finder)
        stack.callback(sys.meta_path.remove, finder)
        stack.enter_context(guarding(guard))
        yield lambda: _import_entry(folder / program.entry, guard)


class _ProgramFinder(importlib.abc.MetaPathFinder):
    """Finds a program's own modules, and nothing that Pie itself may want to import."""

    def __init__(self, folder: Path, paths: Iterable[str], guard: NativeGuard) -> None:
        self._folder, self._guard = str(folder), guard
        names = {path.split("/")[0].removesuffix(".py") for path in paths}
        self._names = names - sys.stdlib_module_names

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of a module of the program; None for others."""
        if fullname.partition(".")[0] not in self._names:
            return None
        where = [self._folder] if path is None else list(path)
        spec = importlib.machinery.PathFinder.find_spec(fullname, where, target)
        if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
            spec.loader = GuardedLoader(fullname, spec.origin, self._guard)
        return spec


def _import_entry(file: Path, guard: NativeGuard) -> types.ModuleType:
    name = file.stem
    if name in sys.modules or name in sys.stdlib_module_names:
        name = f"_program_{name}"  # `random.py` is a program, not the module
    loader = GuardedLoader(name, str(file), guard)
    spec = importlib.util.spec_from_file_location(name, file, loader=loader)
    assert spec is not None, "a path that ends in .py has a loader"
    assert spec.loader is not None, "it was given"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _forget(before: set[str], paths: Iterable[str]) -> None:
    """Let the next run of this process, as in tests, import the program's modules anew."""
    own = {path.split("/")[0].removesuffix(".py") for path in paths}
    own |= {f"_program_{name}" for name in own}
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in own:
            del sys.modules[name]
