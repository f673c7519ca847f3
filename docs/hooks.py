"""Fills in the parts of the documentation that are made from the code, at every build.

A page asks with a comment: ``<!-- help: run -->``, ``<!-- modules: pie_trio -->``.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the comments of a page; MkDocs calls this for each."""
    markdown = re.sub(r"<!-- help:(.*?)-->", lambda m: help_text(m[1]), markdown)
    return re.sub(r"<!-- modules: (.*?) -->", lambda m: module_map(m[1]), markdown)


def help_text(command: str) -> str:
    """Return what a command prints for ``--help``."""
    words = [*command.split(), "--help"]
    # 3.14 colours help texts
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pie_trio", *words],
        capture_output=True,
        check=True,
        cwd=ROOT,
        env=environment,
        text=True,
    )
    return f"```console\n$ pie {' '.join(words)}\n{done.stdout}```"


def module_map(package: str) -> str:
    """Return a list of the modules of a package, with the first line of each docstring."""
    lines = []
    paths = (ROOT / package).rglob("*.py")
    for path in sorted(p for p in paths if "build" not in p.parts):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if docstring := ast.get_docstring(ast.parse(path.read_text())):
            lines.append(f"- `{name}`: {docstring.splitlines()[0]}")
    return "\n".join(lines)
