"""``pie check``: what of a program lies outside of the part of Python that the sandbox has.

It reads the program and runs none of it, so it sees what is written down: imports, and calls by
the names under which they were imported.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pie_trio.application.authoring.dependencies import find_native_code
from pie_trio.application.authoring.imports import find_imports, is_inside, module_names
from pie_trio.application.authoring.subset import REFUSALS, TASKS, Subset, load_subset

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pie_trio.application.authoring.projects import Project

__all__ = ["Finding", "check_project", "find_owner"]

LOOPS = ("asyncio", "trio", "anyio", "curio", "uvloop", "gevent")
CLIENTS = ("requests", "httpx", "aiohttp", "urllib3", "http", "urllib.request")
THREADS = ("concurrent", "multiprocessing")
PATH_METHODS = ("read_text", "read_bytes", "write_text", "write_bytes")


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One thing that will not work, or not as one might think.

    Attributes:
        path: Of the module.
        line: In it.
        message: What it is and what to do.
        level: An error ends the program where it happens; a warning does not.
    """

    path: str
    line: int
    message: str
    level: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.level}: {self.message}"


def check_project(project: Project, subset: Subset | None = None) -> list[Finding]:
    """Return what of a program the sandbox does not have, by file and line.

    Args:
        project: The program. Modules of its dependencies are checked for missing modules only.
        subset: None for that of the language component.
    """
    subset = subset or load_subset()
    modules = project.program.modules
    known = module_names(modules)
    findings: set[Finding] = set()
    for path, text in modules.items():
        is_own = path in project.own
        try:
            tree = ast.parse(text, path)
        except SyntaxError as error:
            if is_own:
                findings.add(Finding(path, error.lineno or 1, f"{error.msg}"))
            continue
        findings.update(_check_imports(path, text, known, subset, is_own=is_own))
        if is_own:
            visitor = _Calls(path)
            visitor.visit(tree)
            findings.update(visitor.findings)
    return sorted(findings)


def _check_imports(
    path: str, text: str, known: set[str], subset: Subset, *, is_own: bool
) -> Iterator[Finding]:
    for item in find_imports(path, text):
        name = item.name
        if not name or item.is_optional:
            continue
        if not is_own and (item.is_lazy or item.is_fallback):
            continue  # of dependencies these are often for other systems
        if name in subset.modules or name in known or is_inside(name, ("inferlet_py",)):
            continue
        if is_inside(name, known):
            yield Finding(path, item.line, f"there is no module {name} in the program")
            continue
        yield Finding(path, item.line, f"cannot import {name}: {_why(name, subset)}")


def _why(name: str, subset: Subset) -> str:
    top = name.partition(".")[0]
    if top in LOOPS:
        return (
            "its event loop does not run here; inferlet_py has open_nursery, sleep, "
            "move_on_after, Event and channels"
        )
    if name in CLIENTS or top in CLIENTS:
        return "there are no sockets; use http_get, http_post or http_request"
    if top in THREADS:
        return f"there are no threads; {TASKS}"
    if top in subset.modules:
        return f"the sandbox has {top} without it"
    if (why := find_owner(name)) is not None:
        return why
    if importlib.util.find_spec(top) is not None:
        return "the sandbox does not have it"
    return "there is no such module here either: is it one of the program's own?"


def find_owner(name: str) -> str | None:
    """Say why a module of an installed distribution is missing; None if it is of none."""
    owners: Mapping[str, list[str]] = importlib.metadata.packages_distributions()
    owner = owners.get(name.partition(".")[0])
    if not owner:
        return None
    if find_native_code(importlib.metadata.distribution(owner[0])):
        return f"it belongs to {owner[0]}, which has native code"
    return (
        f"it belongs to {owner[0]}, which is not among the program's dependencies: name it "
        "in [project] dependencies of pyproject.toml, which works if it is pure Python"
    )


class _Calls(ast.NodeVisitor):
    """Finds calls that the sandbox refuses, by what names stand for."""

    def __init__(self, path: str) -> None:
        self.findings: list[Finding] = []
        self._path = path
        self._origins: dict[str, str] = {}  # what a name was imported as
        self._refusals = {refusal.name: refusal for refusal in REFUSALS}
        self._handled = 0

    def visit_Import(self, node: ast.Import) -> None:  # ast's name
        for alias in node.names:
            bound = alias.asname or alias.name.partition(".")[0]
            self._origins[bound] = alias.name if alias.asname else bound

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:  # ast's name
        for alias in node.names:
            if node.module and not node.level:
                origin = f"{node.module}.{alias.name}"
                self._origins[alias.asname or alias.name] = origin

    def visit_Try(self, node: ast.Try) -> None:  # ast's name
        # Who catches OSError is prepared.
        self._handled += bool(node.handlers)
        for child in node.body:
            self.visit(child)
        self._handled -= bool(node.handlers)
        rest: list[ast.AST] = [*node.handlers, *node.orelse, *node.finalbody]
        for part in rest:
            self.visit(part)

    def visit_Call(self, node: ast.Call) -> None:  # ast's name
        self.generic_visit(node)
        name = self._name_of(node.func)
        if name == "time.sleep":
            message = "time.sleep holds up all branches: `await sleep()` holds up one"
            self.findings.append(Finding(self._path, node.lineno, message, "warning"))
        refusal = self._refusals.get(name)
        if refusal is None:
            return
        message = f"{name} fails, since there are no {refusal.what}: {refusal.instead}"
        if refusal.name == "input":
            message = f"input() fails, since there is no terminal: {refusal.instead}"
        level: Literal["error", "warning"] = "warning" if self._handled else "error"
        self.findings.append(Finding(self._path, node.lineno, message, level))

    def _name_of(self, function: ast.expr) -> str:
        """Return the full name of what is called, as ``os.path.join``; empty if unknown."""
        parts: list[str] = []
        while isinstance(function, ast.Attribute):
            parts.append(function.attr)
            function = function.value
        if (
            isinstance(function, ast.Call)
            and self._name_of(function.func) == "pathlib.Path"
        ):
            return ".".join(["pathlib.Path", *reversed(parts)])
        if not isinstance(function, ast.Name):
            if parts and parts[0] in PATH_METHODS and "Path" in self._origins:
                return f"pathlib.Path.{parts[0]}"
            return ""
        origin = self._origins.get(function.id)
        if origin is None:
            if parts and parts[0] in PATH_METHODS:
                return f"pathlib.Path.{parts[0]}"  # nothing else has these methods
            return "" if parts else function.id
        return ".".join([origin, *reversed(parts)])
