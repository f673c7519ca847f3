"""Host functions: how Python implements what a component imports.

Nothing may be raised into C: a ``BaseException`` that leaves a ctypes callback ends the process.
Each callback therefore catches everything, keeps it on the fiber that called, and returns an
error to wasmtime; the task that drives the fiber re-raises it once the trap has unwound the guest.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wasmtime import Engine, WasmtimeError, component
from wasmtime import _ffi as ffi

from pie_trio.application.waiting import Waiting
from pie_trio.application.wasm.values import (
    STRING,
    VAL_SIZE,
    Codec,
    Enum,
    Record,
    Result,
    ResultValue,
)
from pie_trio.errors import EngineError, InferletError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from pie_trio.application.wasm.fiber import Fiber

__all__ = ["ERROR", "HostFunction", "HostInterface", "HostLinker", "settle"]

ERROR_CODES = (
    "invalid-argument",
    "unknown-handle",
    "out-of-pages",
    "out-of-embeds",
    "limit-exceeded",
    "busy",
    "unsupported",
    "forbidden",
    "not-found",
    "failed",
    "cancelled",
    "timed-out",
    "engine-failed",
    "engine-lost",
    "stopping",
    "internal",
)
ERROR = Record(code=Enum(*ERROR_CODES), message=STRING)
"""The WIT record ``types.error``; a ``(code, message)`` pair."""

# Addresses as plain integers: ctypes would otherwise build a pointer object an argument a call.
_Call = ctypes.CFUNCTYPE(
    ctypes.c_size_t,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_void_p,
    ctypes.c_size_t,
)
_CallAsync = ctypes.CFUNCTYPE(
    None,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_void_p,
    ctypes.c_void_p,
)
_Continue = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)
_NO_FINALIZER = ctypes.cast(0, ctypes.CFUNCTYPE(None, ctypes.c_void_p))


@dataclass(frozen=True)
class HostFunction:
    """One import.

    Attributes:
        call: Gets the host object of the instance and the lifted arguments; returns the value,
            or :class:`Waiting` if ``waits``. An ``InferletError`` becomes the error of a
            ``result<_, error>``; anything else ends the guest and is raised where it is driven.
        params: One codec a parameter.
        result: None if the function returns nothing.
        waits: Whether it may suspend the guest.
    """

    call: Callable[..., Any]
    params: Sequence[Codec[Any]] = ()
    result: Codec[Any] | None = None
    waits: bool = False


@dataclass(frozen=True)
class HostInterface:
    """One imported interface, by its full name with version.

    Attributes:
        resources: Names of resources, each with the number by which the host knows its kind.
        types: The named types that it declares; those of its functions cross without this.
    """

    name: str
    functions: Mapping[str, HostFunction]
    resources: Mapping[str, int] = field(default_factory=dict)
    types: Mapping[str, Codec[Any]] = field(default_factory=dict)

    @property
    def short_name(self) -> str:
        """The name without package and version."""
        return self.name.partition("/")[2].partition("@")[0]


async def PARKED() -> None:  # noqa: N802 - a sentinel
    """As the work of a ``Waiting``: the guest is kept until it gets its real host object."""
    raise AssertionError("a parked guest goes on with Fiber.finish")


class PendingCall:
    """A host call that a guest is suspended in.

    Attributes:
        work: Await it for the value.
        is_done: ``value`` is there: the guest goes on at the next poll.
    """

    __slots__ = ("error_out", "function", "is_done", "results", "value", "work")

    def __init__(self, function: HostFunction, results: int, error_out: int) -> None:
        self.function, self.results, self.error_out = function, results, error_out
        self.work: Callable[[], Awaitable[Any]] | None = None
        self.value: Any = None
        self.is_done = False

    def answer(self, host: Any, arguments: Sequence[Any] = ()) -> None:
        """Call the function; whatever it raises becomes the value."""
        try:
            answer = self.function.call(host, *arguments)
        except BaseException as error:  # noqa: BLE001 - may run inside of a callback from C
            answer = error
        if isinstance(answer, Waiting):
            self.work = answer.work
        else:
            self.value, self.is_done = answer, True

    def repeat(self, host: Any) -> None:
        """Make a parked call, which has no arguments, again with another host object."""
        self.work = None
        self.answer(host)


def make_error(message: str) -> int:
    """Return the address of a wasmtime error that the caller gives away."""
    error = WasmtimeError(message)._consume()
    address: int = ctypes.cast(error, ctypes.c_void_p).value or 0
    return address


def settle(function: HostFunction, value: Any) -> Any:
    """Turn what a function returned or raised into the value that its result codec takes."""
    if isinstance(function.result, Result):
        if isinstance(value, InferletError | EngineError):
            return ResultValue(is_ok=False, value=(value.code, str(value)))
        if not isinstance(value, BaseException | ResultValue):
            return ResultValue(is_ok=True, value=value)
    if isinstance(value, BaseException):
        raise value
    return value


class HostLinker:
    """Defines host interfaces for components of one engine.

    Args:
        engine: The wasmtime engine.
        current: Returns the fiber that is being polled: one thread, so one at a time.
    """

    def __init__(self, engine: Engine, current: Callable[[], Fiber]) -> None:
        self.raw = component.Linker(engine)
        self._current = current
        self._keep_alive: list[Any] = []
        self._continue = _Continue(self._continue_call)
        self._continue_address = ctypes.cast(self._continue, ctypes.c_void_p).value

    def define(self, interfaces: Sequence[HostInterface]) -> None:
        """Define all functions and resources of the interfaces."""
        with self.raw.root() as root:
            for interface in interfaces:
                with root.add_instance(interface.name) as instance:
                    for resource, number in interface.resources.items():
                        kind = component.ResourceType.host(number)
                        instance.add_resource(resource, kind, self._drop_resource)
                    for name, function in interface.functions.items():
                        self._define(instance, name, function)

    def trap_unknown_imports(self, wanted: component.Component) -> None:
        """Let what ``wanted`` imports beyond the known interfaces trap when it is called."""
        self.raw.define_unknown_imports_as_traps(wanted)

    def _drop_resource(self, _store: Any, number: int) -> None:
        self._current().host.drop_resource(number)

    def _define(self, instance: Any, name: str, function: HostFunction) -> None:
        raw_name = name.encode()
        buffer = ctypes.create_string_buffer(raw_name)
        callback: Any
        if function.waits:
            callback = _CallAsync(self._make_waiting_callback(function))
            add = ffi.wasmtime_component_linker_instance_add_func_async
            kind = ffi.wasmtime_component_func_async_callback_t
        else:
            callback = _Call(self._make_callback(function))
            add = ffi.wasmtime_component_linker_instance_add_func
            kind = ffi.wasmtime_component_func_callback_t
        self._keep_alive.append(callback)
        typed = ctypes.cast(callback, kind)
        error: Any = add(
            instance.ptr(), buffer, len(raw_name), typed, None, _NO_FINALIZER
        )
        if error:
            raise WasmtimeError._from_ptr(error)

    def _make_callback(self, function: HostFunction) -> Callable[..., int]:
        current, call, result = self._current, function.call, function.result
        params = [(codec.lift, i * VAL_SIZE) for i, codec in enumerate(function.params)]
        is_fallible = isinstance(result, Result)

        def callback(
            _env: int,
            _context: int,
            _type: int,
            args: int,
            _nargs: int,
            results: int,
            _nresults: int,
        ) -> int:
            fiber = current()
            try:
                value: Any
                try:
                    value = call(
                        fiber.host, *[lift(args + offset) for lift, offset in params]
                    )
                    if is_fallible and not isinstance(value, ResultValue):
                        value = ResultValue(is_ok=True, value=value)
                except (InferletError, EngineError) as error:
                    value = settle(function, error)
                if result is not None:
                    result.lower(results, value)
            except BaseException as error:  # noqa: BLE001 - nothing may be raised into C
                fiber.error = error
                return make_error(f"host call failed: {error}")
            return 0

        return callback

    def _make_waiting_callback(self, function: HostFunction) -> Callable[..., None]:
        current = self._current
        params = [(codec.lift, i * VAL_SIZE) for i, codec in enumerate(function.params)]
        continue_address = self._continue_address

        def callback(
            _env: int,
            _context: int,
            _type: int,
            args: int,
            _nargs: int,
            results: int,
            _nresults: int,
            error_out: int,
            continuation: int,
        ) -> None:
            fiber = current()
            pending = PendingCall(function, results, error_out)
            try:
                arguments = [lift(args + offset) for lift, offset in params]
            except BaseException as error:  # noqa: BLE001 - nothing may be raised into C
                pending.value, pending.is_done = error, True
            else:
                pending.answer(fiber.host, arguments)
            fiber.pending = pending
            slot: Any = ffi.wasmtime_async_continuation_t.from_address(continuation)
            ctypes.c_void_p.from_address(
                ctypes.addressof(slot)
            ).value = continue_address
            slot.env = None
            slot.finalizer = _NO_FINALIZER

        return callback

    def _continue_call(self, _env: int) -> bool:
        """Tell wasmtime, at each poll, whether the guest's host call has returned."""
        fiber = self._current()
        pending = fiber.pending
        if pending is None or not pending.is_done:
            return False
        fiber.pending = None
        try:
            value = settle(pending.function, pending.value)
            if pending.function.result is not None:
                pending.function.result.lower(pending.results, value)
        except BaseException as error:  # noqa: BLE001 - nothing may be raised into C
            fiber.error = error
            address = ctypes.c_void_p.from_address(pending.error_out)
            address.value = make_error(f"host call failed: {error}")
        return True
