"""The SDK's host in the same process: each call crosses to the thread where trio runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import trio

from inferlet_py._host import Host, bind_host
from pie_trio.application.host.interfaces import make_interfaces
from pie_trio.application.run.native_values import NativeTypes, python_name
from pie_trio.application.waiting import Waiting
from pie_trio.application.wasm.linking import settle
from pie_trio.application.wasm.values import Result, Unit
from pie_trio.errors import EngineError, InferletError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pie_trio.application.host.session import Session
    from pie_trio.application.wasm.linking import HostFunction, HostInterface
    from pie_trio.application.wasm.values import Codec

__all__ = ["make_native_host", "make_native_module"]


class NativeCallError(Exception):
    """A call answered with the error of its ``result``. As componentize-py's ``Err``."""

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self.value = value


def make_native_host(
    session: Session,
    token: trio.lowlevel.TrioToken,
    *,
    adapt: Callable[[list[HostInterface]], list[HostInterface]] = lambda given: given,
) -> Host:
    """Return the SDK's host on a session, to be called from outside of trio's thread.

    Args:
        session: The instance's side of the calls.
        token: Of the trio loop that the session belongs to.
        adapt: May put something between the program and the host.
    """
    interfaces = adapt(make_interfaces())
    every_type = {
        name: codec
        for interface in interfaces
        for name, codec in interface.types.items()
    }
    shared = NativeTypes(every_type)
    modules = {
        interface.short_name: make_native_module(interface, session, token, shared)
        for interface in interfaces
    }
    # As componentize-py's, a module knows those whose types it uses.
    for module in modules.values():
        for name, other in modules.items():
            vars(module).setdefault(python_name(name), other)
    return bind_host(modules, NativeCallError)


def make_native_module(
    interface: HostInterface,
    session: Session,
    token: trio.lowlevel.TrioToken,
    shared: NativeTypes | None = None,
) -> SimpleNamespace:
    """Return what looks like componentize-py's module of an interface.

    Args:
        interface: The host's side of it.
        session: The instance's side of the calls.
        token: Of the trio loop that the session belongs to.
        shared: Classes that it has in common with others.
    """
    types = NativeTypes(interface.types, shared)

    def call(function: HostFunction, arguments: list[Any]) -> Any:
        """Call a function under trio; wait if it has to."""

        async def cross() -> Any:
            try:
                answer = function.call(session, *arguments)
                if isinstance(answer, Waiting):
                    session.settle()
                    answer = await answer.work()
            except (InferletError, EngineError) as error:
                answer = error
            return settle(function, answer)

        return trio.from_thread.run(cross, trio_token=token)

    functions = {
        python_name(name): _make_function(function, types, call)
        for name, function in interface.functions.items()
    }
    return SimpleNamespace(**functions, **types.classes())


def _make_function(
    function: HostFunction,
    types: NativeTypes,
    call: Callable[[HostFunction, list[Any]], Any],
) -> Callable[..., Any]:
    params = [types.from_sdk(codec) for codec in function.params]
    result = function.result
    if isinstance(result, Result):
        good, bad = _payload(types, result.ok), _payload(types, result.error)
    else:
        good = bad = _payload(types, Unit() if result is None else result)

    def native(*args: Any) -> Any:
        arguments = [convert(arg) for convert, arg in zip(params, args, strict=True)]
        answer = call(function, arguments)
        if not isinstance(result, Result):
            return good(answer)
        if not answer.is_ok:
            raise NativeCallError(bad(answer.value))
        return good(answer.value)

    return native


def _payload(types: NativeTypes, codec: Codec[Any] | Unit) -> Callable[[Any], Any]:
    return (lambda _: None) if isinstance(codec, Unit) else types.to_sdk(codec)
