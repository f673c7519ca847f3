"""Which modules the text of a program imports, and where: at its top, or when a function runs."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Import", "find_imports", "is_inside", "module_names"]

_MAY_FAIL = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}


@dataclass(frozen=True, slots=True)
class Import:
    """One import of one module.

    Attributes:
        name: Of the module, absolute; empty where only the running program knows it.
        path: Of the module that imports it.
        line: In it.
        is_lazy: It happens when a function is called.
        is_optional: The program does without: the import is inside of a ``try``, or the name
            may be no module but something inside of one.
        is_fallback: It happens when another import has failed.
    """

    name: str
    path: str
    line: int
    is_lazy: bool = False
    is_optional: bool = False
    is_fallback: bool = False

    @property
    def where(self) -> str:
        """File and line, for messages."""
        return f"{self.path}, line {self.line},"


def find_imports(path: str, text: str) -> list[Import]:
    """Return what a module imports, in the order of its text.

    What is below ``if TYPE_CHECKING:`` is left out. ``from a import b`` counts as ``a``, and as
    ``a.b`` that is optional.

    Raises:
        SyntaxError: The text is no Python.
    """
    visitor = _Visitor(path)
    visitor.visit(ast.parse(text, path))
    return visitor.found


def module_names(paths: Iterable[str]) -> set[str]:
    """Return the names by which modules at these paths are imported, packages included."""
    names: set[str] = set()
    for path in paths:
        parts = path.removesuffix(".py").split("/")
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        names.update(".".join(parts[: i + 1]) for i in range(len(parts)))
    return names


def is_inside(name: str, known: Iterable[str] | Mapping[str, object]) -> bool:
    """Say whether a module, or a package around it, is among the known ones."""
    parts = name.split(".")
    return any(".".join(parts[: i + 1]) in known for i in range(len(parts)))


class _Visitor(ast.NodeVisitor):
    def __init__(self, path: str) -> None:
        self.found: list[Import] = []
        self._path = path
        parts = path.removesuffix(".py").split("/")
        self._package = parts[:-1]
        self._depth = 0
        self._num_tries = 0
        self._num_fallbacks = 0
        self._importers = {"__import__"}  # functions that import what they are told

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:  # ast's name
        self._visit_function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:  # ast's name
        self._visit_function(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:  # ast's name
        self._visit_function(node)

    def _visit_function(self, node: ast.AST) -> None:
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    def visit_If(self, node: ast.If) -> None:  # ast's name
        if _names_type_checking(node.test):
            for child in node.orelse:
                self.visit(child)
            return
        self.generic_visit(node)

    def visit_Try(self, node: ast.Try) -> None:  # ast's name
        is_caught = any(_catches_imports(handler) for handler in node.handlers)
        self._num_tries += is_caught
        for child in node.body:
            self.visit(child)
        self._num_tries -= is_caught
        for handler in node.handlers:
            self._num_fallbacks += _catches_imports(handler)
            self.visit(handler)
            self._num_fallbacks -= _catches_imports(handler)
        for part in (*node.orelse, *node.finalbody):
            self.visit(part)

    def visit_Import(self, node: ast.Import) -> None:  # ast's name
        for alias in node.names:
            self._add(alias.name, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:  # ast's name
        up = len(self._package) - node.level + 1
        base = self._package[: max(up, 0)] if node.level else []
        origin = ".".join([*base, *([node.module] if node.module else [])])
        if origin:
            self._add(origin, node)
        for alias in node.names:
            if alias.name == "*":
                continue
            if origin == "importlib" and alias.name == "import_module":
                self._importers.add(alias.asname or alias.name)
            self._add(
                ".".join(filter(None, [origin, alias.name])), node, is_optional=True
            )

    def visit_Call(self, node: ast.Call) -> None:  # ast's name
        function = node.func
        is_import = (
            isinstance(function, ast.Name) and function.id in self._importers
        ) or (isinstance(function, ast.Attribute) and function.attr == "import_module")
        if is_import and node.args:
            first = node.args[0]
            value = first.value if isinstance(first, ast.Constant) else None
            name = value if isinstance(value, str) else ""
            if not name.startswith("."):
                self._add(name, node)
        self.generic_visit(node)

    def _add(
        self, name: str, node: ast.stmt | ast.expr, *, is_optional: bool = False
    ) -> None:
        self.found.append(
            Import(
                name,
                self._path,
                node.lineno,
                is_lazy=self._depth > 0,
                is_optional=is_optional or self._num_tries > 0,
                is_fallback=self._num_fallbacks > 0,
            )
        )


def _names_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _catches_imports(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    return any(
        isinstance(node, ast.Name) and node.id in _MAY_FAIL
        for node in ast.walk(handler.type)
    )
