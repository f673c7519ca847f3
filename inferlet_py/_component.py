"""The component that runs programs sent as source. Importable inside a component only."""

from __future__ import annotations

import gc
import json
import os
import random
from typing import TYPE_CHECKING, TypeVar

from componentize_py_types import Err
from wit_world.exports import program
from wit_world.imports import source

from inferlet_py import _stdlib  # noqa: F401  # what is not imported here is missing at run time
from inferlet_py._host import connect
from inferlet_py._program import (
    compile_module,
    describe_failure,
    find_inferlet,
    load_modules,
)
from inferlet_py._rehearsal import rehearse
from inferlet_py._wasm_host import WasmHost

if TYPE_CHECKING:
    from collections.abc import Callable

    from inferlet_py._inferlet import Inferlet

T = TypeVar("T")


class Compiler:
    """Answers for the exported interface ``compiler``."""

    def compile(self) -> list[str]:
        return _report(_compile)


class Program:
    """Answers for the exported interface ``program``."""

    def run(self) -> str:
        return _report(_run)

    def describe(self) -> str:
        return _report(_describe)


def _report(action: Callable[[], T]) -> T:
    try:
        return action()
    except BaseException as error:  # noqa: BLE001  # what leaves the export would be a trap without a message
        failure = program.Failure(*describe_failure(error))
    raise Err(failure)


def _compile() -> list[str]:
    return [compile_module(module) for module in source.get_program().modules]


def _load() -> Inferlet[..., object]:
    found = source.get_program()
    # The interpreter is a snapshot: without this every instance would draw the same numbers.
    random.seed(os.urandom(16))
    return find_inferlet(load_modules(found.entry, found.modules))


def _run() -> str:
    host = WasmHost()
    connect(host)
    return _load().run(host)


def _describe() -> str:
    connect(WasmHost())
    return json.dumps(_load().describe())


# The interpreter as it is now becomes the image that every instance starts from: what is cached
# here (regular expressions, type hints, adapted bytecode) need not be made at each launch, and
# what is frozen is not touched, hence not copied, by a garbage collection in an instance.
rehearse()
gc.collect()
gc.freeze()
