"""What every component of Python exports, and its host. Importable inside a component only."""

from __future__ import annotations

import gc
import importlib
import os
import random
from typing import TYPE_CHECKING, TypeVar

from componentize_py_types import Err
from wit_world.exports import program

from inferlet_py._host import INTERFACES, bind_host
from inferlet_py._program import describe_failure
from inferlet_py._rehearsal import rehearse

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["HOST", "freeze", "report"]

_IMPORTED = {
    name: importlib.import_module(f"wit_world.imports.{name.replace('-', '_')}")
    for name in (interface.name for interface in INTERFACES)
}
HOST = bind_host(_IMPORTED, Err)

T = TypeVar("T")
SeedValue = int | float | str | bytes | bytearray | None


def report(action: Callable[[], T]) -> T:
    """Return what an export returns; what it raises becomes the failure of the WIT."""
    try:
        return action()
    except BaseException as error:  # noqa: BLE001  # what leaves the export would be a trap without a message
        failure = program.Failure(*describe_failure(error))
    raise Err(failure)


def freeze() -> None:
    """Make the interpreter, as it is now, the image that every instance starts from.

    What is cached (regular expressions, type hints, adapted bytecode) need not be made at each
    launch, and what is frozen is not touched, hence not copied, by a garbage collection.
    """
    rehearse()
    gc.collect()
    gc.freeze()


def _seed(a: SeedValue = None, version: int = 2) -> None:
    """As ``random.seed``, but without a value it takes 16 bytes of the system, not 2,500.

    componentize-py calls it when an instance starts, since the image holds one state for all.
    """
    _seed_fully(os.urandom(16) if a is None else a, version)


_seed_fully = random.seed
random.seed = _seed
