"""The component that runs programs sent as source. Importable inside a component only."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from wit_world.imports import source

from inferlet_py import _stdlib  # noqa: F401  # what is not imported here is missing at run time
from inferlet_py._exporting import HOST, freeze, report
from inferlet_py._host import connect, get_host
from inferlet_py._program import compile_module, find_inferlet, load_modules
from inferlet_py._rehearsal import rehearse

if TYPE_CHECKING:
    from inferlet_py._inferlet import Inferlet


class Compiler:
    """Answers for the exported interface ``compiler``."""

    def compile(self) -> list[str]:
        return report(_compile)


class Program:
    """Answers for the exported interface ``program``."""

    def run(self) -> str:
        return report(_run)

    def describe(self) -> str:
        return report(_describe)


def _compile() -> list[str]:
    return [compile_module(module) for module in source.get_program().modules]


def _load() -> Inferlet[..., object]:
    if not source.has_program():
        # This guest is made ahead of time: what a run touches is then copied ahead of time too.
        rehearse(rounds=1)
    found = source.get_program()
    connect(HOST)
    return find_inferlet(load_modules(found.entry, found.modules))


def _run() -> str:
    program = _load()
    return program.run(get_host())


def _describe() -> str:
    return json.dumps(_load().describe())


freeze()
