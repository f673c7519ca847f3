"""The component that runs programs sent as source. Importable inside a component only."""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
from typing import TYPE_CHECKING, TypeVar

from componentize_py_types import Err
from wit_world.exports import program
from wit_world.imports import source

from inferlet_py import _stdlib  # noqa: F401  # what is not imported here is missing at run time
from inferlet_py._host import INTERFACES, bind_host, connect, get_host
from inferlet_py._program import (
    compile_module,
    describe_failure,
    find_inferlet,
    load_modules,
)
from inferlet_py._rehearsal import rehearse

if TYPE_CHECKING:
    from collections.abc import Callable

    from inferlet_py._inferlet import Inferlet

_IMPORTED = {
    name: importlib.import_module(f"wit_world.imports.{name.replace('-', '_')}")
    for name in (interface.name for interface in INTERFACES)
}
_HOST = bind_host(_IMPORTED, Err)

T = TypeVar("T")
SeedValue = int | float | str | bytes | bytearray | None


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
    if not source.has_program():
        # This guest is made ahead of time: what a run touches is then copied ahead of time too.
        rehearse(rounds=1)
    found = source.get_program()
    connect(_HOST)
    return find_inferlet(load_modules(found.entry, found.modules))


def _run() -> str:
    program = _load()
    return program.run(get_host())


def _describe() -> str:
    return json.dumps(_load().describe())


def _seed(a: SeedValue = None, version: int = 2) -> None:
    """As ``random.seed``, but without a value it takes 16 bytes of the system, not 2,500.

    componentize-py calls it when an instance starts, since the image holds one state for all.
    """
    _seed_fully(os.urandom(16) if a is None else a, version)


_seed_fully = random.seed
random.seed = _seed

# The interpreter as it is now becomes the image that every instance starts from: what is cached
# here (regular expressions, type hints, adapted bytecode) need not be made at each launch, and
# what is frozen is not touched, hence not copied, by a garbage collection in an instance.
rehearse()
gc.collect()
gc.freeze()
