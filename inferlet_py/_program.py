"""Find and run the program in a set of modules; report what it raises in its author's terms."""

from __future__ import annotations

import base64
import importlib.abc
import importlib.machinery
import importlib.util
import linecache
import marshal
import sys
import traceback
import types
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from inferlet_py._inferlet import Inferlet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "Failure",
    "NoInferletError",
    "SourceModule",
    "compile_module",
    "describe_failure",
    "find_inferlet",
    "import_file",
    "load_modules",
]

Failure = tuple[str, str, str]
"""Kind, message and traceback: the WIT record ``failure``."""


class NoInferletError(Exception):
    """The entry module has no program, or several."""

    __module__ = "inferlet_py"


@dataclass(frozen=True)
class SourceModule:
    """A module of a program.

    Attributes:
        path: Inside the program, as ``app.py``.
        text: Its source.
        code: What :func:`compile_module` made of it, or "".
    """

    path: str
    text: str
    code: str = ""


def compile_module(module: SourceModule) -> str:
    """Return the code of a module as text, for the same version of Python."""
    compiled = compile(module.text, module.path, "exec", dont_inherit=True)
    return base64.b64encode(marshal.dumps(compiled)).decode()


def _execute(source: SourceModule, module: types.ModuleType) -> None:
    module.__file__ = source.path
    # Tracebacks show the author's lines, though there is no file.
    lines = source.text.splitlines(keepends=True)
    linecache.cache[source.path] = (len(source.text), None, lines, source.path)
    code: types.CodeType
    if source.code:
        code = marshal.loads(base64.b64decode(source.code))  # from `compile_module`
    else:
        code = compile(source.text, source.path, "exec", dont_inherit=True)
    exec(code, module.__dict__)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the modules of a program from their text."""

    def __init__(self, modules: Mapping[str, SourceModule]) -> None:
        self._modules = modules

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # the protocol's
        target: types.ModuleType | None = None,  # the protocol's
    ) -> importlib.machinery.ModuleSpec | None:
        base = fullname.replace(".", "/")
        for candidate, is_package in (
            (f"{base}/__init__.py", True),
            (f"{base}.py", False),
        ):
            if candidate in self._modules:
                return importlib.util.spec_from_loader(
                    fullname, self, origin=candidate, is_package=is_package
                )
        if any(name.startswith(base + "/") for name in self._modules):
            spec = importlib.machinery.ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = []
            return spec
        return None

    def create_module(
        self,
        spec: importlib.machinery.ModuleSpec,  # the protocol's
    ) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        assert module.__spec__ is not None, "importlib sets it"
        assert module.__spec__.origin is not None, "find_spec sets it"
        _execute(self._modules[module.__spec__.origin], module)


def load_modules(entry: str, modules: Sequence[SourceModule]) -> types.ModuleType:
    """Import the entry module of a program; it may import the others.

    The entry is executed without the import system, which costs a guest a millisecond.
    """
    by_path = {module.path: module for module in modules}
    if len(modules) > 1:
        sys.meta_path.insert(0, _Finder(by_path))
    name = entry.removesuffix(".py").replace("/", ".")
    loaded = types.ModuleType(name)
    sys.modules[name] = loaded
    _execute(by_path[entry], loaded)
    return loaded


def import_file(path: str | Path) -> types.ModuleType:
    """Import the entry module of a program from its file, as running natively does."""
    file = Path(path).resolve()
    sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location(file.stem, path)
    assert spec is not None, "a path that ends in .py has a loader"
    assert spec.loader is not None, "a path that ends in .py has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def find_inferlet(module: types.ModuleType) -> Inferlet[..., Any]:
    """Return the one program of a module.

    Raises:
        NoInferletError: There is none, or there are several.
    """
    found: dict[str, Inferlet[..., Any]] = {}
    for name, value in vars(module).items():
        if isinstance(value, Inferlet):
            candidate = cast("Inferlet[..., Any]", value)
            if candidate.function.__module__ == module.__name__:  # not imported
                found[name] = candidate
    if len(found) == 1:
        return next(iter(found.values()))
    where = getattr(module, "__file__", module.__name__)
    if not found:
        raise NoInferletError(
            f"{where} has no inferlet: put @inferlet above the asynchronous function to run"
        )
    raise NoInferletError(
        f"{where} has {len(found)} inferlets ({', '.join(found)}): keep one"
    )


def describe_failure(error: BaseException, *, hidden: Sequence[str] = ()) -> Failure:
    """Return what a client is told of an exception: the author's own lines, not the SDK's.

    Args:
        error: What the program raised.
        hidden: Folders whose frames are left out too.
    """
    hint = _hint(error)
    if hint:
        error.add_note(hint)  # which the traceback ends with
    report = traceback.TracebackException.from_exception(error)
    _keep_own_frames(report, (_OUR_FOLDER, _IMPORTLIB, "<frozen ", *hidden))
    named = _only_cause(error)
    kind = type(named).__qualname__
    module = type(named).__module__
    if module not in ("builtins", "__main__", "inferlet_py"):
        kind = f"{module}.{kind}"
    message = f"{named}: {hint}" if hint else str(named)
    return kind, message, "".join(report.format())


def _only_cause(error: BaseException) -> BaseException:
    """Return what is alone in a group: nurseries raise groups, which say little in a line."""
    if BaseExceptionGroup not in type(error).__mro__:  # isinstance would blur its type
        return error
    inner = cast("Sequence[BaseException]", getattr(error, "exceptions", ()))
    return _only_cause(inner[0]) if len(inner) == 1 else error


def _hint(error: BaseException) -> str:
    """Return what an author may do about an import that only the sandbox refuses."""
    platform: str = sys.platform  # a type checker would take it for a constant
    is_of_sandbox = platform == "wasi" or hasattr(error, "is_of_sandbox")
    if not is_of_sandbox or not isinstance(error, ModuleNotFoundError):
        return ""
    if (error.name or "").partition(".")[0] in ("asyncio", "trio", "anyio"):
        return (
            "its event loop does not run here; inferlet_py has open_nursery, sleep, "
            "move_on_after, Event and channels"
        )
    return (
        "it is not in the sandbox, where a program has its own modules, inferlet_py and "
        "most of the standard library"
    )


_OUR_FOLDER = str(Path(__file__).parent)
_IMPORTLIB = str(Path(importlib.__file__).parent)


def _keep_own_frames(
    report: traceback.TracebackException, hidden: tuple[str, ...]
) -> None:
    own = [frame for frame in report.stack if not frame.filename.startswith(hidden)]
    report.stack = traceback.StackSummary.from_list(own)
    for linked in (report.__cause__, report.__context__, *(report.exceptions or ())):
        if linked is not None:
            _keep_own_frames(linked, hidden)
