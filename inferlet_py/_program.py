"""Find and run the program in a set of modules; report what it raises in its author's terms."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import linecache
import sys
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from inferlet_py._inferlet import Inferlet

__all__ = ["Failure", "NoInferletError", "describe_failure", "find_inferlet", "load_modules"]

PROGRAM_ROOT = "inferlet:"
"""Comes before the paths of a program's modules in tracebacks."""

Failure = tuple[str, str, str]
"""Kind, message and traceback: the WIT record ``failure``."""


class NoInferletError(Exception):
    """The entry module has no program, or several."""


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the modules of a program from their text."""

    def __init__(self, modules: Mapping[str, str]) -> None:
        self._modules = modules

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002  # the protocol's
        target: types.ModuleType | None = None,  # noqa: ARG002  # the protocol's
    ) -> importlib.machinery.ModuleSpec | None:
        base = fullname.replace(".", "/")
        for candidate, is_package in ((f"{base}/__init__.py", True), (f"{base}.py", False)):
            if candidate in self._modules:
                return importlib.util.spec_from_loader(
                    fullname, self, origin=candidate, is_package=is_package
                )
        if any(name.startswith(base + "/") for name in self._modules):
            spec = importlib.machinery.ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = []
            return spec
        return None

    def create_module(self, _spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        assert module.__spec__ is not None, "importlib sets it"
        path = module.__spec__.origin
        assert path is not None, "find_spec sets it"
        text, filename = self._modules[path], PROGRAM_ROOT + path
        module.__file__ = filename
        # Tracebacks show the author's lines, though there is no file.
        linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
        exec(compile(text, filename, "exec"), module.__dict__)


def load_modules(entry: str, modules: Mapping[str, str]) -> types.ModuleType:
    """Import the entry module of a program; it may import the others."""
    sys.meta_path.insert(0, _Finder(modules))
    name = ".".join(PurePosixPath(entry).with_suffix("").parts)
    return importlib.import_module(name)


def find_inferlet(module: types.ModuleType) -> Inferlet[..., Any]:
    """Return the one program of a module.

    Raises:
        NoInferletError: There is none, or there are several.
    """
    found = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, Inferlet) and value.function.__module__ == module.__name__
    }
    if len(found) == 1:
        return next(iter(found.values()))
    where = getattr(module, "__file__", module.__name__).removeprefix(PROGRAM_ROOT)
    if not found:
        raise NoInferletError(
            f"{where} has no inferlet: put @inferlet above the asynchronous function to run"
        )
    raise NoInferletError(f"{where} has {len(found)} inferlets ({', '.join(found)}): keep one")


def describe_failure(error: BaseException) -> Failure:
    """Return what a client is told of an exception: the author's own lines, not the SDK's."""
    report = traceback.TracebackException.from_exception(error)
    _keep_own_frames(report)
    kind = type(error).__qualname__
    module = type(error).__module__
    if module not in ("builtins", "__main__") and not module.startswith("inferlet_py"):
        kind = f"{module}.{kind}"
    text = "".join(report.format()).replace(PROGRAM_ROOT, "")
    return kind, str(error), text


def _keep_own_frames(report: traceback.TracebackException) -> None:
    own = [frame for frame in report.stack if not _is_ours(frame.filename)]
    report.stack = traceback.StackSummary.from_list(own)
    for linked in (report.__cause__, report.__context__, *(report.exceptions or ())):
        if linked is not None:
            _keep_own_frames(linked)


_OUR_FOLDER = __file__.rpartition("/")[0]


def _is_ours(filename: str) -> bool:
    return (
        filename.startswith((_OUR_FOLDER, "<frozen importlib", "<frozen runpy"))
        or "/importlib/" in filename
        or "componentize_py" in filename
        or filename.endswith("/inferlet_app.py")
    )
