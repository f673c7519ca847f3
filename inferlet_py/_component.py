"""The component that runs programs sent as source. Importable inside a component only."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from componentize_py_types import Err
from wit_world.exports import program
from wit_world.imports import source

from inferlet_py import _stdlib  # noqa: F401  # what is not imported here is missing at run time
from inferlet_py._host import connect
from inferlet_py._inferlet import Inferlet
from inferlet_py._program import describe_failure, find_inferlet, load_modules
from inferlet_py._wasm_host import WasmHost


class Program:
    """Answers for the world's exported interface ``program``."""

    def run(self) -> str:
        return _report(_run)

    def describe(self) -> str:
        return _report(_describe)


def _report(action: Callable[[], str]) -> str:
    try:
        return action()
    except BaseException as error:  # noqa: BLE001  # what leaves the export would be a trap without a message
        failure = program.Failure(*describe_failure(error))
    raise Err(failure)


def _load() -> Inferlet[..., object]:
    found = source.get_program()
    # The interpreter is a snapshot: without this every instance would draw the same numbers.
    random.seed()
    return find_inferlet(load_modules(found.entry, {m.path: m.text for m in found.modules}))


def _run() -> str:
    host = WasmHost()
    connect(host)
    return _load().run(host)


def _describe() -> str:
    connect(WasmHost())
    return json.dumps(_load().describe())
