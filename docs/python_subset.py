"""Writes ``python-subset.md`` and ``subset.json``, from what the language component answers.

``python docs/python_subset.py`` after a change of ``inferlet_py/_stdlib.py`` or a new version of
componentize-py. A test says when it was forgotten.
"""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import trio

from pie_trio.application.authoring.subset import REFUSALS, make_probe
from pie_trio.application.lifecycle.instances import link_language, open_launcher
from pie_trio.application.lifecycle.programs import SourceProgram
from pie_trio.application.run.setup import prepare_language
from pie_trio.application.services import Services
from pie_trio.application.wasm.compile_cache import CompileCache
from pie_trio.application.wasm.runtime import LinkedComponent, WasmRuntime
from pie_trio.config import InstanceLimits, WasmConfig

ROOT = Path(__file__).parents[1]
DATA = ROOT / "pie_trio" / "application" / "authoring" / "subset.json"
PAGE = ROOT / "docs" / "python-subset.md"
WIDTH = 110

INTRODUCTION = """# What of Python a program has

In the sandbox a program runs on CPython {python}, compiled to Wasm. It has its own modules, those of its
dependencies in pure Python, `inferlet_py`, and most of the standard library. There are no threads, processes, files
and sockets, and no native extensions. `pie check` finds what a program uses beyond this, and `pie run --native` refuses
the same. This page is made from the component itself.

## Modules of the standard library

```text
{modules}
```

A component made by `pie build` also has what else of the standard library its program imports, as long as that needs no
native code that is missing here.

## What is refused

| call | error | instead |
| --- | --- | --- |
{refusals}

`time.sleep` works, and holds up all branches of the program: `await sleep()` holds up one. `print` goes to the log.
`random` is seeded anew for each run.
"""


async def probe(language: LinkedComponent) -> dict[str, Any]:
    """Ask the language component what it can do."""
    program = SourceProgram("probe", "app.py", {"app.py": make_probe()}, "probe")
    async with open_launcher(language, Services(), InstanceLimits()) as launcher:
        answer: dict[str, Any] = json.loads(await launcher.prepare(program, {}).run())
    return answer


def encode(found: dict[str, Any]) -> str:
    """Return the text of ``subset.json``."""
    return json.dumps(found, indent=1, sort_keys=True) + "\n"


def render(found: dict[str, Any]) -> str:
    """Return the text of the page."""
    public = [n for n in found["modules"] if not any(p[0] == "_" for p in n.split("."))]
    rows: list[str] = []
    for (what, instead), group in groupby(REFUSALS, lambda r: (r.what, r.instead)):
        errors: dict[str, list[str]] = {}
        for refusal in group:
            kind, arguments = found["errors"][refusal.name]
            text = (
                f"[Errno {arguments[0]}] {arguments[1]}"
                if len(arguments) > 1
                else arguments[0]
            )
            errors.setdefault(f"`{kind}: {text}`", []).append(f"`{refusal.name}`")
        rows += [
            f"| {what}: {', '.join(n)} | {e} | {instead} |" for e, n in errors.items()
        ]
    return INTRODUCTION.format(
        python=found["python"], modules=_wrap(public), refusals="\n".join(rows)
    )


def _wrap(names: list[str]) -> str:
    lines = [""]
    for name in names:
        if len(lines[-1]) + len(name) + 1 > WIDTH:
            lines.append("")
        lines[-1] = f"{lines[-1]} {name}".strip()
    return "\n".join(lines)


def main() -> int:
    """Write both files."""
    config = WasmConfig()
    path = prepare_language(config)
    with WasmRuntime(config, CompileCache(config.cache_directory)) as runtime:
        found = trio.run(probe, link_language(runtime, path))
    DATA.write_text(encode(found))
    PAGE.write_text(render(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
