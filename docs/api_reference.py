"""Writes ``api.md``: the WIT, the public names of inferlet_py, and what covers each function.

Everything is read and nothing imported, so that it needs no more than Python:

    python docs/api_reference.py            writes the file
    python docs/api_reference.py --check    says whether it is up to date and complete
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/api.md"
COVERAGE = ROOT / "docs/api_coverage.toml"
WIT = ROOT / "inferlet_py/wit"
SDK = ROOT / "inferlet_py"
NOT_CALLED_BY_NAME = {"source"}
"""Interfaces between the server and the language component: every program uses them."""

INTRODUCTION = """\
<!-- Made by docs/api_reference.py from inferlet_py/wit, inferlet_py and docs/api_coverage.toml. -->

# The API

An inferlet sees the model at three levels, each built on the one below. A program may mix them token by token.

1. **Generate.** `async for chunk in ctx.generate(max_tokens=64, sampler=TopP(0.9))`: most programs.
2. **Context and forward.** `dist = await ctx.forward(tokens)`, `branch = ctx.fork()`, `ctx.truncate(n)`: decoding of
   your own, trees, agents.
3. **The paper's calls.** `Queue`, `KvPage`, `Embed`, explicit positions and masks: everything else.

All of them end in the functions of the [WIT](#interfaces), the interface between a Wasm component and the server.
What an author imports from `inferlet_py` is [below](#inferlet_py), and so is the [table](#coverage) of the paper's
calls. A call that may take time returns a ticket at once, so that all branches of a program can submit before any of
them waits; in Python it is awaited.
"""


@dataclass
class Item:
    """A function or type of an interface.

    Attributes:
        kind: ``func``, ``record``, ``enum``, ``variant``, ``flags`` or ``type``.
        text: Its declaration as written, with the comments inside of it.
    """

    kind: str
    name: str
    documentation: str
    text: str


@dataclass
class Interface:
    """An interface of the WIT."""

    name: str
    documentation: str
    items: list[Item] = field(default_factory=list[Item])

    def of_kind(self, *kinds: str) -> list[Item]:
        """Return its items of these kinds."""
        return [item for item in self.items if item.kind in kinds]


@dataclass(frozen=True)
class Coverage:
    """What ``api_coverage.toml`` says of a function.

    Attributes:
        paper: The paper's name of it, or empty.
        sdk: Its names in inferlet_py.
        test: ``path::name``, or empty where there is none yet.
    """

    paper: str = ""
    sdk: tuple[str, ...] = ()
    test: str = ""


# ---- the WIT ---------------------------------------------------------------------------


def read_interfaces() -> dict[str, Interface]:
    """Return the interfaces in the order in which the world imports and exports them."""
    found: dict[str, Interface] = {}
    for path in sorted(WIT.glob("*.wit")):
        for interface in _read_file(path.read_text()):
            found[interface.name] = interface
    world = (WIT / "world.wit").read_text()
    order = ["types", *re.findall(r"^  (?:import|export) ([\w-]+);", world, re.M)]
    names = [*dict.fromkeys(order), *sorted(found.keys() - set(order))]
    return {name: found[name] for name in names if name in found}


def _read_file(text: str) -> list[Interface]:
    interfaces: list[Interface] = []
    comment: list[str] = []
    lines = iter(text.splitlines())
    inside = False
    for line in lines:
        stripped = line.strip()
        if stripped.startswith("///"):
            comment.append(stripped.removeprefix("///").strip())
            continue
        if match := re.match(r"interface ([\w-]+) \{", line):
            interfaces.append(Interface(match[1], "\n".join(comment)))
            inside = True
        elif re.match(r"world ", line):
            inside = False
        elif inside and (item := _item_head(stripped)):
            text = "\n".join([line, *_rest_of(line, lines)])
            declared = "\n".join(part.removeprefix("  ") for part in text.splitlines())
            interfaces[-1].items.append(Item(*item, "\n".join(comment), declared))
        comment = []
    return interfaces


def _item_head(line: str) -> tuple[str, str] | None:
    if match := re.match(r"(record|enum|variant|flags|type) %?([\w-]+)", line):
        return match[1], match[2]
    if match := re.match(r"%?([\w-]+): func\(", line):
        return "func", match[1]
    return None


def _rest_of(line: str, lines: Iterator[str]) -> list[str]:
    rest: list[str] = []
    is_block = line.rstrip().endswith("{")
    while not (line.rstrip() == "  }" if is_block else line.rstrip().endswith(";")):
        line = next(lines)
        rest.append(line)
    return rest


# ---- inferlet_py -----------------------------------------------------------------------


@dataclass(frozen=True)
class PublicName:
    """A name that inferlet_py exports, as it is in the source."""

    name: str
    module: str
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | None


def read_public_names() -> list[PublicName]:
    """Return what ``inferlet_py.__all__`` lists."""
    tree = ast.parse((SDK / "__init__.py").read_text())
    modules: dict[str, str] = {}
    exported: list[str] = []
    for node in tree.body:
        match node:
            case ast.ImportFrom(module=str(module)):
                modules.update({alias.name: module for alias in node.names})
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                exported = ast.literal_eval(value)
            case _:
                pass
    return [PublicName(n, modules[n], _find(n, modules[n])) for n in exported]


def _find(
    name: str, module: str
) -> ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | None:
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    for node in tree.body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                if node.name == name:
                    return node
            case ast.ImportFrom(module=str(origin), names=names):
                if any(alias.name == name for alias in names):
                    return _find(name, origin)
            case _:
                pass
    return None


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef, *, name: str = "") -> str:
    arguments = ast.unparse(node.args)
    arguments = re.sub(r"^(self|cls)(, )?", "", arguments)
    arguments = re.sub(r"^/, ", "", arguments)
    prefix = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    returns = "" if node.returns is None or name else f" -> {ast.unparse(node.returns)}"
    return f"{prefix}{name or node.name}({arguments}){returns}"


def _methods(node: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    found = [
        n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return [n for n in found if not n.name.startswith("_")]


def _is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    return any(d in ("property", "cached_property") for d in decorators)


def _first_line(node: ast.AST) -> str:
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    documentation = ast.get_docstring(node) or ""
    return _prose(documentation.partition("\n\n")[0])


def _prose(text: str) -> str:
    """Return a docstring's text as Markdown."""
    text = re.sub(r":\w+:`[~.]*([^`]+)`", r"``\1``", text)
    return re.sub(r"``([^`]+)``", r"`\1`", text)


# ---- coverage --------------------------------------------------------------------------


def read_coverage() -> dict[str, Coverage]:
    """Return what covers each function, by ``interface.function``."""
    table = tomllib.loads(COVERAGE.read_text())
    return {
        key: Coverage(row.get("paper", ""), tuple(row.get("sdk", ())), row["test"])
        for key, row in table.items()
    }


def functions() -> list[str]:
    """Return ``interface.function`` for each function of the WIT."""
    return [
        f"{interface.name}.{item.name}"
        for interface in read_interfaces().values()
        for item in interface.of_kind("func")
    ]


def find_problems() -> list[str]:
    """Return what is wrong with ``api_coverage.toml``."""
    coverage, called = read_coverage(), functions()
    names = sdk_names()
    problems = [f"{key} is not in the WIT" for key in coverage if key not in called]
    for key in called:
        row = coverage.get(key)
        if row is None:
            problems.append(f"{key} is not in docs/api_coverage.toml")
            continue
        problems += [
            f"{key}: inferlet_py has no {name}" for name in row.sdk if name not in names
        ]
        problems += [f"{key}: {problem}" for problem in _problems_of_test(key, row)]
    return problems


def _problems_of_test(key: str, row: Coverage) -> list[str]:
    if not row.test:
        return ["no test covers it yet"]
    path, _, name = row.test.partition("::")
    if not (ROOT / path).is_file() or name not in _definitions(path):
        return [f"there is no test {row.test}"]
    interface, _, function = key.partition(".")
    wanted = {function.replace("-", "_"), *(part.split(".")[-1] for part in row.sdk)}
    if interface in NOT_CALLED_BY_NAME or wanted & _words_reached(path, name):
        return []
    return [f"{row.test} does not call {' or '.join(sorted(wanted))}"]


def sdk_names() -> set[str]:
    """Return ``name`` and ``Class.method`` of everything public in inferlet_py."""
    found: set[str] = set()
    for public in read_public_names():
        found.add(public.name)
        if isinstance(public.node, ast.ClassDef):
            found |= {f"{public.name}.{m.name}" for m in _methods(public.node)}
    return found


def _definitions(path: str) -> dict[str, str]:
    """Return the source of each function, method and class at the top of a module."""
    text = (ROOT / path).read_text()
    lines = text.splitlines()
    found: dict[str, str] = {}
    for node in ast.parse(text).body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        found[node.name] = "\n".join(lines[first - 1 : node.end_lineno])
        for method in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
                source = "\n".join(lines[method.lineno - 1 : method.end_lineno])
                found.setdefault(method.name, source)
    return found


def _helpers(path: str) -> list[str]:
    """Return the modules of the tests that a module imports."""
    text = (ROOT / path).read_text()
    modules = re.findall(r"^from (tests\.[\w.]+) import", text, re.M)
    paths = [f"{module.replace('.', '/')}.py" for module in modules]
    return [p for p in paths if (ROOT / p).is_file()]


def _words_reached(path: str, name: str) -> set[str]:
    """Return the words in a test, in what it calls inside of the tests, and in what it runs."""
    sources = dict(_definitions(path))
    for helper in _helpers(path):
        for other, source in _definitions(helper).items():
            sources.setdefault(other, source)
    reached, left, words = set[str](), [name], set[str]()
    while left:
        current = left.pop()
        if current not in reached:
            reached.add(current)
            found = set(re.findall(r"\w+", sources[current]))
            words |= found
            left += [word for word in found if word in sources]
    # A program that the command line runs is named by its path.
    programs = re.findall(r'"(tests/[\w/]+\.py)"', (ROOT / path).read_text())
    for program in programs:
        words |= set(re.findall(r"\w+", (ROOT / program).read_text()))
    return words


# ---- the page --------------------------------------------------------------------------


def make_page() -> str:
    """Return the whole of ``api.md``."""
    parts = [INTRODUCTION, *_interface_parts(), *_sdk_parts(), *_table_parts()]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _interface_parts() -> list[str]:
    parts = [
        "## Interfaces",
        "Names are as in the WIT; in Python they have underscores.",
    ]
    coverage = read_coverage()
    for interface in read_interfaces().values():
        parts += [f"### {interface.name}", interface.documentation]
        for item in interface.of_kind("type", "record", "enum", "variant", "flags"):
            parts += [_block(item), item.documentation]
        for item in interface.of_kind("func"):
            row = coverage.get(f"{interface.name}.{item.name}", Coverage())
            names = ", ".join(f"`{name}`" for name in row.sdk)
            note = f" In Python: {names}." if names else ""
            parts += [_block(item), item.documentation + note]
    return parts


def _block(item: Item) -> str:
    return f"#### `{item.name}`\n\n```wit\n{item.text}\n```"


def _sdk_parts() -> list[str]:
    parts = ["## inferlet_py", "Everything is imported from `inferlet_py`."]
    for public in read_public_names():
        parts.append(f"### `{public.name}`")
        match public.node:
            case ast.ClassDef() as node:
                parts += [_class_part(node)]
            case None:
                parts += [f"A value, made in `{public.module}`."]
            case node:
                parts += [f"```python\n{_signature(node)}\n```", _first_line(node)]
    return parts


def _class_part(node: ast.ClassDef) -> str:
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    init = next((n for n in node.body if getattr(n, "name", "") == "__init__"), None)
    head = [f"class {node.name}({bases})" if bases else f"class {node.name}"]
    if isinstance(init, ast.FunctionDef):
        head.append(_signature(init, name=node.name))
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
    head += [f"    {ast.unparse(field)}" for field in fields]
    lines = ["```python", *head, "```", "", _first_line(node)]
    methods = _methods(node)
    if methods:
        lines.append("")
    for method in methods:
        shown = method.name if _is_property(method) else _signature(method)
        documentation = _first_line(method).replace("\n", " ")
        lines.append(
            f"- `{shown}`: {documentation}" if documentation else f"- `{shown}`"
        )
    return "\n".join(lines)


def _table_parts() -> list[str]:
    rows = ["| the paper | WIT | inferlet_py | test |", "| --- | --- | --- | --- |"]
    coverage = read_coverage()
    for key in functions():
        row = coverage.get(key, Coverage())
        paper = f"`{row.paper}`" if row.paper else ""
        sdk = ", ".join(f"`{name}`" for name in row.sdk)
        path, _, name = row.test.partition("::")
        test = f"`{path}`: `{name}`" if row.test else "**missing**"
        rows.append(f"| {paper} | `{key}` | {sdk} | {test} |")
    text = "Calls without a name in the paper are ours. A test of each function:"
    return ["## Coverage", text, "\n".join(rows)]


def main(arguments: list[str]) -> int:
    """Write the page, or with ``--check`` compare it; return the exit code."""
    page = make_page()
    problems = find_problems()
    if arguments == ["--check"]:
        if not PAGE.exists() or PAGE.read_text() != page:
            problems.append(
                "docs/api.md is out of date: run python docs/api_reference.py"
            )
    else:
        PAGE.write_text(page)
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
