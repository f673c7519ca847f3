"""The source of a function of a notebook or script, with all that it names, as a program.

What a function needs is found in its text: names that it takes from its module. Functions and
classes of the same module come along with their text, and with what these name; imports are
written again; constants that Python can write down are written down. All else is refused by
name, before anything is sent.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import hashlib
import inspect
import linecache
import re
import symtable
import sys
import textwrap
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, cast

from pie_trio.errors import ProgramError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Shipped", "ship"]

SDK = "inferlet_py"
DECORATOR = "inferlet"
MARK = "_inferlet"
FUTURE = __future__.annotations.compiler_flag
MAX_NAME = 48
HASH_DIGITS = 12


class Shipped:
    """A program as it is sent, and its name, which its hash is part of.

    Attributes:
        name: What to call it on a server.
        data: The text of a module, or an archive.
        sha256: Of these.
    """

    def __init__(self, name: str, data: bytes) -> None:
        self.data = data
        self.sha256 = hashlib.sha256(data).hexdigest()
        plain = re.sub(r"[^A-Za-z0-9-]+", "-", name).strip("-") or DECORATOR
        self.name = f"{plain[:MAX_NAME]}-{self.sha256[:HASH_DIGITS]}"


def ship(program: object) -> Shipped:
    """Return the program that an asynchronous function is, or a module with an ``@inferlet``.

    Raises:
        ProgramError: It is neither, its source is not to be had, or it needs what cannot be
            sent; the message names it.
    """
    if isinstance(program, ModuleType):
        return _ship_module(program)
    program = getattr(program, "function", program)  # of inferlet_py's own decorator
    name = getattr(program, "__name__", repr(program))
    if not isinstance(program, FunctionType) or not inspect.iscoroutinefunction(
        program
    ):
        raise ProgramError(
            f"{name} cannot be an inferlet: expected a function that begins with `async def`, "
            "or a module"
        )
    return Shipped(name, _Collector(program).text().encode())


def _ship_module(module: ModuleType) -> Shipped:
    from pie_trio.client.packing import pack_program

    if module.__file__ is None:
        raise ProgramError(f"cannot send the module {module.__name__}: it has no file")
    path = Path(module.__file__)
    path = path.parent if path.name == "__init__.py" else path
    return Shipped(*pack_program(path))


class _Collector:
    """Collects what a function needs.

    Attributes:
        imports: Lines, in the order in which they were found.
        parts: Text of each definition by its name; what one needs stands before it.
    """

    def __init__(self, function: FunctionType) -> None:
        self.imports = dict[str, None]()
        if function.__code__.co_flags & FUTURE:
            self.imports["from __future__ import annotations"] = None
        self.imports[f"from {SDK} import {DECORATOR} as {MARK}"] = None
        self.parts = dict[str, str]()
        self._function = function
        self._path = list[str]()
        self._main = self._add_definition(function)

    def text(self) -> str:
        """Return the module."""
        blocks = [
            "\n".join(self.imports),
            *self.parts.values(),
            f"@{MARK}\n{self._main}",
        ]
        return "\n\n\n".join(blocks) + "\n"

    def _add_definition(self, found: FunctionType | type) -> str:
        """Return the text of a function or class, and add what it needs."""
        if isinstance(found, FunctionType) and found.__closure__:
            names = ", ".join(found.__code__.co_freevars)
            raise self._refusal(
                f"{names} of the function around {found.__name__}",
                "make it an argument",
            )
        text = _read_definition(found, self._function)
        self._path.append(found.__name__)
        for used in _names_in(text):
            # Those on the path name each other; when they run, all are there.
            if used not in self._path and used not in self.parts:
                self._add(used)
        self._path.pop()
        return text

    def _add(self, name: str) -> None:
        """Add what a name of the function's module stands for."""
        known = self._function.__globals__
        if name not in known:
            if hasattr(builtins, name):
                return
            raise self._refusal(name, "it is not defined where the function is")
        value = known[name]
        origin = getattr(value, "__module__", None)
        if isinstance(value, ModuleType):
            self._add_import(name, value.__name__, None)
        elif (
            isinstance(value, FunctionType | type)
            and origin == self._function.__module__
            and value.__qualname__ == name
        ):
            self.parts[name] = self._add_definition(value)
        elif (line := _written(value)) is not None:
            self.parts[name] = f"{name} = {line}"
        else:
            self._add_import(name, origin or _home(value), value)

    def _add_import(self, name: str, module: str | None, value: object) -> None:
        """Add the line that imports a module, or something from it."""
        if (
            module is None
            or module == self._function.__module__
            or module == "__main__"
        ):
            raise self._refusal(
                f"{name}, which is {_describe(value)}",
                "make it inside of the function, or give it as an argument",
            )
        if value is None:
            package, _, last = module.rpartition(".")
            if name == module:
                line = f"import {module}"
            elif name == last:
                line = f"from {package} import {last}"
            else:
                line = f"import {module} as {name}"
        else:
            module = _public_home(module, name, value)
            original = (
                name
                if hasattr(sys.modules[module], name)
                else getattr(value, "__name__", "")
            )
            if getattr(sys.modules[module], original, None) is not value:
                raise self._refusal(
                    f"{name}, which is {_describe(value)}",
                    "make it inside of the function, or give it as an argument",
                )
            line = f"from {module} import {original}"
            line += "" if original == name else f" as {name}"
        top = module.partition(".")[0]
        if top != SDK and module not in _modules_there():
            raise self._refusal(
                f"the module {module}",
                "programs have the standard library and inferlet_py; deploy a folder that "
                "has the module, or names it in its pyproject.toml",
            )
        self.imports[line] = None

    def _refusal(self, what: str, advice: str) -> ProgramError:
        path = " -> ".join(dict.fromkeys(self._path))
        return ProgramError(f"cannot send {what}, which {path} needs: {advice}")


def _read_definition(found: FunctionType | type, main: FunctionType) -> str:
    """Return the text of a definition; that of the program itself without its decorators.

    Raises:
        ProgramError: There is none.
    """
    try:
        lines = textwrap.dedent(_source_of(found, main)).splitlines()
        body = ast.parse("\n".join(lines)).body
    except (OSError, TypeError, SyntaxError) as error:
        raise ProgramError(
            f"cannot send {found.__name__}: its source is not to be had ({error}): write it in "
            "a file, or in the same cell of a notebook"
        ) from error
    if len(body) != 1 or not isinstance(
        body[0], ast.AsyncFunctionDef | ast.FunctionDef | ast.ClassDef
    ):
        raise ProgramError(
            f"cannot send {found.__name__}: write it with `def` or `class`"
        )
    start = body[0].lineno - 1 if found is main else 0
    return "\n".join(lines[start:]).strip()


def _source_of(found: FunctionType | type, main: FunctionType) -> str:
    try:
        return inspect.getsource(found)
    except (OSError, TypeError):
        # Before Python 3.13 a class of a notebook does not know its cell.
        text = "".join(linecache.getlines(main.__code__.co_filename))
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and node.name == found.__name__:
                marks = [mark.lineno for mark in node.decorator_list]
                first = min([node.lineno, *marks])
                return "\n".join(text.splitlines()[first - 1 : node.end_lineno])
        raise


def _names_in(text: str) -> list[str]:
    """Return the names that a definition takes from its module, in order of the alphabet."""
    found = set[str]()
    table = symtable.symtable(text, "<program>", "exec")
    own = {s.get_name() for s in table.get_symbols() if s.is_assigned()}
    for inner in _tables(table):
        is_top = inner is table
        found |= {
            symbol.get_name()
            for symbol in inner.get_symbols()
            if symbol.is_referenced() and (is_top or symbol.is_global())
        }
    return sorted(found - own)


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _tables(child)


def _written(value: object) -> str | None:
    """Return a constant as Python writes it; None if it is none."""
    try:
        text = repr(value)
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
    return text if type(found) is type(value) and found == value else None


def _home(value: object) -> str | None:
    """Return the module of something that does not say it: a type hint, or a value of a module."""
    for module in ("typing", SDK):
        if module in sys.modules and any(
            found is value for found in vars(sys.modules[module]).values()
        ):
            return module
    return None


def _public_home(module: str, name: str, value: object) -> str:
    """Return the package that offers something, where its own module is private."""
    parts = module.split(".")
    for count in range(1, len(parts)):
        package = ".".join(parts[:count])
        if getattr(sys.modules.get(package), name, None) is value:
            return package
    return module


def _modules_there() -> frozenset[str]:
    from pie_trio.application.authoring.subset import load_subset

    return load_subset().modules


def _describe(value: object) -> str:
    if isinstance(value, FunctionType | BuiltinFunctionType | type):
        return f"the {type(value).__name__} {value.__qualname__} of {value.__module__}"
    kind = cast("type[Any]", type(value))
    return f"an object of {kind.__module__}.{kind.__qualname__}"
