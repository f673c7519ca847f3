"""Native mode refuses what the sandbox refuses, so that a program which works here works there.

A program's own modules import through a function that knows what the sandbox has. Calls are
noticed by Python's audit events, which tell of files, sockets, processes and threads whoever
opens them; those that the program is not behind (the debugger, imports, Pie itself) go through.
"""

from __future__ import annotations

import _thread
import builtins
import importlib.machinery
import os
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pie_trio.application.authoring.imports import is_inside
from pie_trio.application.authoring.subset import REFUSALS, load_subset

if TYPE_CHECKING:
    import types
    from collections.abc import Collection, Generator, Mapping

__all__ = ["GuardedLoader", "NativeGuard", "guarding"]

DEBUGGERS = ("pdb", "bdb", "readline")
HARMLESS = (
    "<frozen importlib",
    f"{os.sep}importlib{os.sep}",
    f"{os.sep}linecache.py",
    f"{os.sep}pdb.py",
    f"{os.sep}bdb.py",
    f"{os.sep}traceback.py",
    f"{os.sep}inspect.py",
    f"{os.sep}inferlet_py{os.sep}",
    f"{os.sep}pie_trio{os.sep}",
)
"""Parts of the names of files whose code may do what a program may not, on its behalf."""


class NativeGuard:
    """Knows what one program may import and call.

    Args:
        files: Of the program's own modules.
        known: Modules of the program and its dependencies, by name.
    """

    def __init__(self, files: Collection[str], known: Collection[str]) -> None:
        subset = load_subset()
        self._files = files
        self._known = known
        self._modules = subset.modules
        debugger = os.environ.get("PYTHONBREAKPOINT", "").partition(".")[0]
        self._debuggers = (*DEBUGGERS, *([debugger] if debugger else []))
        self._thread = threading.get_ident()
        self._errors = {
            refusal.event: subset.errors[refusal.name]
            for refusal in reversed(
                REFUSALS
            )  # of those with one event the first counts
            if refusal.event
        }
        # From Python 3.13 on threads are started by another function.
        threads = self._errors["_thread.start_new_thread"]
        self._errors["_thread.start_joinable_thread"] = threads

    def builtins(self) -> dict[str, Any]:
        """Return what a module of the program gets as ``__builtins__``."""
        return {**vars(builtins), "__import__": self._import}

    def _import(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,  # noqa: A002  # __import__'s name
        locals: Mapping[str, object] | None = None,  # noqa: A002  # __import__'s name
        fromlist: Collection[str] | None = (),
        level: int = 0,
    ) -> types.ModuleType:
        is_known = level or name in self._modules or is_inside(name, self._known)
        if not is_known and not is_inside(name, ("inferlet_py", *self._debuggers)):
            error = ModuleNotFoundError(f"No module named {name!r}", name=name)
            # As in Wasm, where the SDK itself says why.
            error.is_of_sandbox = True  # type: ignore[attr-defined]
            raise error
        return builtins.__import__(name, globals, locals, tuple(fromlist or ()), level)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Raise if the program is behind an event that the sandbox refuses."""
        found = self._errors.get(event)
        if found is None or threading.get_ident() != self._thread:
            return
        if event == "open" and not isinstance(arguments[0], str | bytes):
            return  # a file that is open already
        if not self._is_program_behind():
            return
        kind, details = found
        error: type[Exception] = getattr(builtins, kind)
        if error is FileNotFoundError:
            raise error(*details, arguments[0])
        raise error(*details)

    def _is_program_behind(self) -> bool:
        frame: types.FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
        while frame is not None and frame.f_code.co_filename == __file__:
            frame = frame.f_back
        while frame is not None:
            name = frame.f_code.co_filename
            if name in self._files:
                return True
            if any(part in name for part in HARMLESS):
                return False
            frame = frame.f_back
        return False


class GuardedLoader(importlib.machinery.SourceFileLoader):
    """Loads a module of a program with the builtins of its guard."""

    def __init__(self, name: str, path: str, guard: NativeGuard) -> None:
        super().__init__(name, path)
        self._guard = guard

    def exec_module(self, module: types.ModuleType) -> None:
        """Execute the module."""
        vars(module)["__builtins__"] = self._guard.builtins()
        super().exec_module(module)


class _Hook:
    """The one audit hook of this process: Python never lets go of one."""

    def __init__(self) -> None:
        self.guards: list[NativeGuard] = []
        self._is_installed = False

    def install(self) -> None:
        if not self._is_installed:
            self._is_installed = True
            sys.addaudithook(self._audit)

    def start_new_thread(self, *args: Any, **kwargs: Any) -> Any:
        """As ``_thread.start_new_thread``, which tells no audit hook in Python 3.11."""
        self._audit("_thread.start_new_thread", args)
        return _start_new_thread(*args, **kwargs)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        for guard in self.guards:
            guard.audit(event, arguments)


_start_new_thread = _thread.start_new_thread
_HOOK = _Hook()


@contextmanager
def guarding(guard: NativeGuard) -> Generator[None]:
    """Refuse what the program of this thread does, for as long as the block is open."""
    _HOOK.install()
    _HOOK.guards.append(guard)
    is_first = len(_HOOK.guards) == 1
    if is_first:
        _set_thread_starter(_HOOK.start_new_thread)
    try:
        yield
    finally:
        _HOOK.guards.remove(guard)
        if is_first:
            _set_thread_starter(_start_new_thread)


def _set_thread_starter(function: Any) -> None:
    _thread.start_new_thread = function
    if hasattr(threading, "_start_new_thread"):  # up to 3.12
        threading.__dict__["_start_new_thread"] = function
