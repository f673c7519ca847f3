"""Host resources across the Wasm boundary, as the numbers by which the host knows them."""

from __future__ import annotations

import ctypes
from ctypes import byref
from typing import TYPE_CHECKING, Any

from wasmtime import _ffi as ffi

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Borrow", "Own"]


class Borrow:
    """A resource that the guest lends to a host call.

    Lifting it also gives it back, which the call must do: otherwise it fails with "borrow
    handles still remain".

    Args:
        get_context: Returns the store context of the guest that is calling.
    """

    def __init__(self, get_context: Callable[[], Any]) -> None:
        self.get_context = get_context

    def lift(self, address: int) -> int:
        value = ffi.wasmtime_component_val_t.from_address(address)
        out = ctypes.POINTER(ffi.wasmtime_component_resource_host_t)()
        error: Any = ffi.wasmtime_component_resource_any_to_host(
            self.get_context(), value.of.resource, byref(out)
        )
        assert not error, "the WIT type makes sure that it is a host resource"
        number: int = ffi.wasmtime_component_resource_host_rep(out)
        ffi.wasmtime_component_resource_host_delete(out)
        return number

    def lower(self, address: int, value: int) -> None:
        raise TypeError("the host lends no resources to a guest")


class Own:
    """A resource that the host hands to the guest.

    Args:
        get_context: Returns the store context of the guest that is calling.
        kind: The number under which the resource's type was defined.
    """

    def __init__(self, get_context: Callable[[], Any], kind: int) -> None:
        self.get_context, self.kind = get_context, kind

    def lift(self, address: int) -> int:
        raise TypeError("a guest hands no resources of the host back")

    def lower(self, address: int, value: int) -> None:
        host = ffi.wasmtime_component_resource_host_new(True, value, self.kind)
        out = ctypes.POINTER(ffi.wasmtime_component_resource_any_t)()
        error: Any = ffi.wasmtime_component_resource_host_to_any(
            self.get_context(), host, byref(out)
        )
        ffi.wasmtime_component_resource_host_delete(host)
        assert not error, "a new host resource always fits its own type"
        slot = ffi.wasmtime_component_val_t.from_address(address)
        slot.kind = ffi.WASMTIME_COMPONENT_RESOURCE.value
        slot.of.resource = out
