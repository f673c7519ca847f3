"""A guest: one store, one instance, and the fiber that its calls run on.

The trio task that owns a guest polls its fiber. A poll runs guest code with the GIL released
until the guest waits for the host, uses up its time slice, or ends. Cancelling the task deletes
the call's future, which drops the fiber where it stands: nothing of the guest is left.
"""

from __future__ import annotations

import ctypes
from ctypes import byref
from time import thread_time
from typing import TYPE_CHECKING, Any, Protocol

import trio
from wasmtime import Store, WasmtimeError
from wasmtime import _ffi as ffi

from pie_trio.application.wasm.linking import PARKED
from pie_trio.errors import EngineError, GuestTrappedError, InferletError

if TYPE_CHECKING:
    from pie_trio.application.wasm.linking import PendingCall
    from pie_trio.application.wasm.runtime import LinkedComponent
    from pie_trio.application.wasm.values import Codec

__all__ = ["Fiber", "FiberObserver"]


class FiberObserver(Protocol):
    """Is told what a fiber is doing, and holds it back. All is called between two polls."""

    @property
    def is_held(self) -> bool:
        """Whether the guest may not go on before :meth:`slice_over` has returned."""
        ...

    def ran(self, seconds: float) -> None:
        """The guest, with the host functions that it called, took so much CPU time."""
        ...

    def blocked(self) -> None:
        """The guest waits for the host, or has ended."""
        ...

    async def slice_over(self) -> None:
        """The guest computed for a whole slice, or is held: return when it may go on."""
        ...


class _Unobserved:
    is_held = False

    def ran(self, seconds: float) -> None:
        return

    def blocked(self) -> None:
        return

    async def slice_over(self) -> None:
        await trio.lowlevel.checkpoint()


class Fiber:
    """One guest. Use as a context manager: leaving drops the guest and its memory.

    Args:
        linked: The component and the host functions that it imports.
        host: What the host functions get as their first argument.
        memory_bytes: Most memory that the guest may grow to.

    Attributes:
        pending: The host call that the guest is suspended in.
        error: What a host function raised that is not the guest's to see.
    """

    def __init__(
        self, linked: LinkedComponent, host: Any, *, memory_bytes: int
    ) -> None:
        self.linked = linked
        self.host = host
        self.pending: PendingCall | None = None
        self.error: BaseException | None = None
        self.observer: FiberObserver = _Unobserved()
        self._future: Any = None
        self._function: Any = None
        self._error: Any = ctypes.POINTER(ffi.wasmtime_error_t)()
        self._results: Any = ctypes.pointer(ffi.wasmtime_component_val_t())
        self._instance = ffi.wasmtime_component_instance_t()
        self._store = Store(linked.runtime.engine)
        self._store.set_limits(memory_size=memory_bytes)
        self.context: Any = self._store._context()
        ffi.wasmtime_context_epoch_deadline_async_yield_and_update(self.context, 1)

    def __enter__(self) -> Fiber:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_started(self) -> bool:
        """Whether a call is in progress."""
        return self._future is not None

    def close(self) -> None:
        """Drop the guest, wherever it stands. Sync, so that cancellation cannot get between."""
        self._delete_future()
        self._store.close()

    async def instantiate(self) -> None:
        """Make the instance: map the component's memory and link its imports."""
        self._future = ffi.wasmtime_component_linker_instantiate_async(
            self.linked.linker.raw.ptr(),
            self.context,
            self.linked.component.ptr(),
            byref(self._instance),
            byref(self._error),
        )
        await self._drive()

    def start(self, interface: str, name: str) -> None:
        """Prepare the call of an exported function that takes nothing; no guest code runs yet.

        Raises:
            GuestTrappedError: The component has no such export.
        """
        assert self._future is None, "a guest runs one call at a time"
        self._function = self._find_export(
            interface, name
        )  # read when the future is polled
        self._error = ctypes.POINTER(ffi.wasmtime_error_t)()
        self._future = ffi.wasmtime_component_func_call_async(
            byref(self._function),
            self.context,
            None,
            0,
            self._results,
            1,
            byref(self._error),
        )

    async def park(self) -> bool:
        """Run the call up to the first host call that answers ``PARKED``.

        Any task may go on from there with :meth:`finish`, which makes that host call again.

        Returns:
            Whether it is parked; otherwise the call has ended.
        """
        return await self._drive(until_parked=True)

    async def finish(self, result: Codec[Any]) -> Any:
        """Run the call to its end and lift what it returns.

        Raises:
            GuestTrappedError: The guest trapped: its message says where.
            BaseException: Whatever a host function kept in ``error``.
        """
        pending = self.pending
        if pending is not None:
            pending.repeat(self.host)
        await self._drive()
        try:
            return result.lift(ctypes.addressof(self._results.contents))
        finally:
            ffi.wasmtime_component_val_delete(self._results)

    def _find_export(self, interface: str, name: str) -> Any:
        index: Any = None
        for part in (interface, name):
            raw = part.encode()
            found: Any = ffi.wasmtime_component_instance_get_export_index(
                byref(self._instance), self.context, index, raw, len(raw)
            )
            if index is not None:
                ffi.wasmtime_component_export_index_delete(index)
            if not found:
                raise GuestTrappedError(
                    f"the component does not export {interface}: "
                    "it was built for another version of the API, or for another host"
                )
            index = found
        function = ffi.wasmtime_component_func_t()
        is_function = ffi.wasmtime_component_instance_get_func(
            byref(self._instance), self.context, index, byref(function)
        )
        ffi.wasmtime_component_export_index_delete(index)
        assert is_function, "an export of the program interface is a function"
        return function

    async def _drive(self, *, until_parked: bool = False) -> bool:
        """Poll until the call ends; return whether it was parked instead."""
        runtime, context = self.linked.runtime, self.context
        poll = runtime.poll
        set_deadline, slice_ticks = (
            ffi.wasmtime_context_set_epoch_deadline,
            runtime.slice_ticks,
        )
        is_parked = False
        try:
            while True:
                pending = self.pending
                if pending is not None and not pending.is_done:
                    if until_parked and pending.work is PARKED:
                        is_parked = True
                        return True
                    assert pending.work is not None, "a call that is not done has work"
                    try:
                        pending.value = await pending.work()
                    except (InferletError, EngineError) as failure:
                        pending.value = failure
                    pending.is_done = True
                observer = self.observer
                if observer.is_held:
                    await observer.slice_over()
                # The deadline counts from here, not from when the guest began to wait.
                set_deadline(context, slice_ticks)
                runtime.current = self
                started = thread_time()
                is_over = poll(self._future)
                observer.ran(thread_time() - started)
                if is_over:
                    break
                if self.pending is not None:
                    observer.blocked()
                elif not observer.is_held:
                    await observer.slice_over()
        finally:
            if not is_parked:
                self._delete_future()
                self.observer.blocked()
        self._raise_failure()
        return False

    def _delete_future(self) -> None:
        """End the call; of a suspended guest this drops the fiber."""
        if self._future is not None:
            ffi.wasmtime_call_future_delete(self._future)
            self._future = None
        self.pending = None

    def _raise_failure(self) -> None:
        failure, self.error = self.error, None
        if not self._error:
            return
        trap = WasmtimeError._from_ptr(self._error)
        self._error = ctypes.POINTER(ffi.wasmtime_error_t)()
        if failure is not None:
            raise failure
        raise GuestTrappedError(_describe_trap(str(trap))) from trap


def _describe_trap(trap: str) -> str:
    """Say in one line what a trap means for the author."""
    if "unknown import" in trap or "has not been defined" in trap:
        name = trap.split("`")[1] if "`" in trap else trap
        return f"the program called `{name}`, which the sandbox does not have"
    if "call stack exhausted" in trap:
        return "the program used up its stack: it recurses too deeply"
    causes = [line.strip() for line in trap.splitlines() if line.strip()]
    return f"the program trapped: {causes[-1] if causes else trap}"
