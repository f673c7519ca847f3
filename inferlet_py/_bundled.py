"""A program that is a component of its own. Importable inside a component only.

``pie build`` writes a module that calls :func:`bundle` while componentize-py fills the image. The
program's own modules are executed when an instance starts, as those of a program sent as source;
what they import from elsewhere is imported here, once.
"""

from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING

from inferlet_py import _stdlib  # noqa: F401  # programs sent as source have it too
from inferlet_py._exporting import HOST, freeze, report
from inferlet_py._host import connect, get_host
from inferlet_py._program import (
    SourceModule,
    compile_module,
    find_inferlet,
    load_modules,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from inferlet_py._inferlet import Inferlet

__all__ = ["bundle"]

MARK = "pie build: "
"""What the builder looks for in the output of componentize-py."""


def bundle(
    entry: str,
    modules: Mapping[str, str],
    imports: Sequence[tuple[str, str, bool]],
) -> type:
    """Return the class that answers for the exported interface ``program``.

    Args:
        entry: Path of the module to run.
        modules: The program's own, text by path.
        imports: Modules from elsewhere: their names, where they are imported, and whether the
            program can do without.

    Raises:
        ImportError: One that is needed cannot be imported in Wasm.
    """
    for name, where, is_optional in imports:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001  # what its text does is its own affair
            if not is_optional:
                kind = type(error).__name__
                why = str(error).strip().partition("\n")[0]  # the builder reads a line
                raise ImportError(
                    f"{MARK}{where} imports {name}: {kind}: {why}"
                ) from None
    sources = [SourceModule(path, text) for path, text in modules.items()]
    compiled = [SourceModule(s.path, s.text, compile_module(s)) for s in sources]

    def load() -> Inferlet[..., object]:
        connect(HOST)
        return find_inferlet(load_modules(entry, compiled))

    class Program:
        """Answers for the exported interface ``program``."""

        def run(self) -> str:
            return report(lambda: load().run(get_host()))

        def describe(self) -> str:
            return report(lambda: json.dumps(load().describe()))

    freeze()
    return Program
