"""The WIT's host side, all of it: one module an interface, collected here.

A test compares them with ``inferlet_py/wit``, function by function and type by type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pie_trio.application.host import (
    allocate,
    children,
    decode,
    exports,
    forward,
    http,
    input_image,
    input_text,
    messaging,
    models,
    output_text,
    processors,
    queues,
    runtime,
    store,
    tickets,
    tokenize,
    topics,
)
from pie_trio.application.host.interface import API_VERSION, answering, interface
from pie_trio.application.wasm.linking import HostFunction, HostInterface
from pie_trio.application.wasm.values import BOOL, STRING, List, Record

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["API_VERSION", "FAILURE", "make_interfaces", "make_source_interface"]

INTERFACES = (
    runtime.INTERFACE,
    messaging.INTERFACE,
    tickets.INTERFACE,
    models.INTERFACE,
    queues.INTERFACE,
    allocate.INTERFACE,
    forward.INTERFACE,
    input_text.INTERFACE,
    input_image.INTERFACE,
    output_text.INTERFACE,
    tokenize.INTERFACE,
    decode.INTERFACE,
    processors.INTERFACE,
    exports.INTERFACE,
    topics.INTERFACE,
    store.INTERFACE,
    http.INTERFACE,
    children.INTERFACE,
)
MODULE = Record(path=STRING, text=STRING, code=STRING)
PROGRAM = Record(entry=STRING, modules=List(MODULE))
FAILURE = Record(kind=STRING, message=STRING, traceback=STRING)
"""The WIT record ``program.failure``."""


def make_interfaces() -> list[HostInterface]:
    """Return what every program may import."""
    return list(INTERFACES)


def make_source_interface(
    has_program: Callable[[Any], bool], get_program: Callable[[Any], Any]
) -> HostInterface:
    """Return what the language component imports besides, to get its program."""
    return interface(
        "source",
        {
            "has-program": answering(has_program, BOOL),
            "get-program": HostFunction(get_program, (), PROGRAM, waits=True),
        },
        types={"module": MODULE, "program": PROGRAM},
    )
