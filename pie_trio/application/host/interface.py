"""What an interface's module is made of: its functions, each with its codecs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pie_trio.application.wasm.linking import ERROR, HostFunction, HostInterface
from pie_trio.application.wasm.values import U32, Codec, List, Result, Unit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["API_VERSION", "HANDLES", "answering", "fallible", "interface", "waiting"]

API_VERSION = "0.1.0"

HANDLES = List(U32)
"""Queues, pages or tickets."""


def interface(
    name: str,
    functions: Mapping[str, HostFunction],
    *,
    types: Mapping[str, Codec[Any]] | None = None,
) -> HostInterface:
    """Return an interface of the WIT.

    Args:
        name: As in the WIT, without package and version.
        functions: By their name in the WIT.
        types: The records, enums, variants and flags that it declares, by their name in the
            WIT: the SDK finds classes of these names in native mode, as it does in Wasm.
    """
    return HostInterface(
        f"pie:inferlet/{name}@{API_VERSION}", functions, types=types or {}
    )


def answering(
    call: Callable[..., Any], result: Codec[Any] | None, *params: Codec[Any]
) -> HostFunction:
    """Return a function that answers at once and cannot fail; None for no result."""
    return HostFunction(call, params, result)


def fallible(
    call: Callable[..., Any], ok: Codec[Any] | Unit, *params: Codec[Any]
) -> HostFunction:
    """Return a function that answers ``result<ok, error>`` at once."""
    return HostFunction(call, params, Result(ok, ERROR))


def waiting(
    call: Callable[..., Any], ok: Codec[Any] | Unit, *params: Codec[Any]
) -> HostFunction:
    """Return a function that answers ``result<ok, error>`` and may suspend the guest."""
    return HostFunction(call, params, Result(ok, ERROR), waits=True)
