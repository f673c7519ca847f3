"""The WIT's host side: which method of :class:`Session` answers which import, with which types.

One entry a function of ``inferlet_py/wit``; a test checks that none is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pie_trio.application.host.session import Session
from pie_trio.application.wasm.linking import ERROR, HostFunction, HostInterface
from pie_trio.application.wasm.values import (
    BOOL,
    F32,
    F64,
    STRING,
    U8,
    U32,
    U64,
    Array,
    Codec,
    Enum,
    List,
    Option,
    Record,
    Result,
    Unit,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["API_VERSION", "FAILURE", "make_interfaces", "make_source_interface"]

API_VERSION = "0.1.0"

HANDLES = List(U32)
TOKENS = Array(U32, np.int32)
INT32S = Array(U32, np.int32)
LEVEL = Enum("debug", "info", "warning", "error")
SAMPLER = Record(temperature=F32, top_k=U32, top_p=F32, min_p=F32, seed=U64)
FORWARD_REQUEST = Record(
    tokens=TOKENS,
    positions=INT32S,
    pages=HANDLES,
    start=U32,
    mask=Option(List(List(U32))),
    outputs=INT32S,
    sampler=Option(SAMPLER),
    top=U32,
)
FORWARD_RESULT = Record(tokens=List(U32), top_ids=Array(U32), top_probs=Array(F32))
MODEL_INFO = Record(
    name=STRING,
    traits=List(STRING),
    description=STRING,
    version=STRING,
    license=STRING,
    prompt_template=STRING,
    vocab_size=U32,
    max_positions=U32,
    eos_tokens=HANDLES,
    kv_page_size=U32,
    max_forward_tokens=U32,
    max_distribution=U32,
)
MODULE = Record(path=STRING, text=STRING, code=STRING)
PROGRAM = Record(entry=STRING, modules=List(MODULE))
FAILURE = Record(kind=STRING, message=STRING, traceback=STRING)
"""The WIT record ``program.failure``."""


def make_interfaces() -> list[HostInterface]:
    """Return what every program may import."""
    return [
        _interface(
            "runtime",
            {
                "get-version": HostFunction(Session.get_version, (), STRING),
                "get-instance-id": HostFunction(Session.get_instance_id, (), STRING),
                "get-arguments": HostFunction(Session.get_arguments, (), STRING),
                "now": HostFunction(Session.now, (), F64),
                "log": HostFunction(Session.write_log, (LEVEL, STRING)),
            },
        ),
        _interface(
            "messaging",
            {
                "send": _fallible(Session.send, Option(U32), STRING),
                "send-bytes": _fallible(Session.send_bytes, Option(U32), Array(U8)),
            },
        ),
        _interface(
            "tickets",
            {
                "wait": _waiting(Session.wait, HANDLES, HANDLES, Option(F64)),
                "finish": _waiting(Session.finish, Unit(), U32),
                "cancel": HostFunction(Session.cancel, (U32,)),
            },
        ),
        _interface(
            "models",
            {
                "available-models": HostFunction(
                    Session.available_models, (), List(STRING)
                ),
                "get-model": _fallible(Session.get_model, MODEL_INFO, STRING),
            },
        ),
        _interface(
            "queues",
            {
                "create-queue": _fallible(Session.create_queue, Unit(), U32, STRING),
                "destroy-queue": _fallible(Session.destroy_queue, Unit(), U32),
                "synchronize": _fallible(Session.synchronize, U32, U32),
            },
        ),
        _interface(
            "allocate",
            {
                "alloc-kvpage": _fallible(Session.alloc_kvpage, Unit(), U32, HANDLES),
                "dealloc-kvpage": _fallible(
                    Session.dealloc_kvpage, Unit(), U32, HANDLES
                ),
                "fork-kvpage": _fallible(
                    Session.fork_kvpage, Unit(), U32, HANDLES, HANDLES
                ),
            },
        ),
        _interface(
            "forward",
            {
                "forward-text": _fallible(
                    Session.forward_text, U32, U32, FORWARD_REQUEST
                ),
                "take-forward": _waiting(Session.take_forward, FORWARD_RESULT, U32),
            },
        ),
        _interface(
            "tokenize",
            {
                "tokenize": _waiting(
                    Session.tokenize, Array(U32), STRING, STRING, BOOL
                ),
                "detokenize": _waiting(Session.detokenize, STRING, STRING, HANDLES),
                "get-vocabs": _fallible(Session.get_vocabs, List(Array(U8)), STRING),
            },
        ),
    ]


def make_source_interface(
    has_program: Callable[[Any], bool], get_program: Callable[[Any], Any]
) -> HostInterface:
    """Return what the language component imports besides, to get its program."""
    return _interface(
        "source",
        {
            "has-program": HostFunction(has_program, (), BOOL),
            "get-program": HostFunction(get_program, (), PROGRAM, waits=True),
        },
    )


def _interface(name: str, functions: Mapping[str, HostFunction]) -> HostInterface:
    return HostInterface(f"pie:inferlet/{name}@{API_VERSION}", functions)


def _fallible(
    call: Callable[..., Any], ok: Codec[Any] | Unit, *params: Codec[Any]
) -> HostFunction:
    return HostFunction(call, params, Result(ok, ERROR))


def _waiting(
    call: Callable[..., Any], ok: Codec[Any] | Unit, *params: Codec[Any]
) -> HostFunction:
    return HostFunction(call, params, Result(ok, ERROR), waits=True)
