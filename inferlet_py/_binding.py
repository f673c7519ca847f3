"""How the functions of the WIT become the SDK's host.

In Wasm the imports are modules that componentize-py has written, natively they are objects that
look like these; what is here does not know which.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

from inferlet_py._errors import HostError, make_host_error
from inferlet_py._kernel import stop_in_call

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Adapters", "HostInterface", "bind_interfaces", "never_fails"]

PAGE_PARAMETERS = (
    *("pages", "page", "source_pages", "source_page", "target_pages", "target_page"),
    *("input_pages", "output_pages"),
)
"""Names of parameters that are numbers of KV pages."""

T = TypeVar("T")
Adapters = dict[str, "Callable[..., Any]"]


def never_fails(function: T) -> T:
    """Mark a method of a Protocol: its function in the WIT returns no ``result``."""
    vars(function)["never_fails"] = True
    return function


def _adapt_nothing(_module: Any) -> Adapters:
    return {}


@dataclass(frozen=True)
class HostInterface:
    """One interface of the WIT as the SDK sees it.

    Attributes:
        name: As in the WIT.
        protocol: One method a function. Its arguments are handed on as they are.
        adapt: Gets the module; returns, by name, functions that take the place of those whose
            arguments or results are not plain values: they build records and read them.
    """

    name: str
    protocol: type
    adapt: Callable[[Any], Adapters] = _adapt_nothing

    def methods(self) -> dict[str, Callable[..., Any]]:
        """Return the methods of the protocol by name."""
        members = vars(self.protocol).items()
        return {name: member for name, member in members if not name.startswith("_")}


def bind_interfaces(
    interfaces: Sequence[HostInterface],
    modules: Mapping[str, Any],
    failure: type[Exception],
) -> Any:
    """Return an object with the functions of all interfaces.

    Args:
        interfaces: Their functions have different names.
        modules: What is imported, by name of the interface.
        failure: What a failed call raises: its ``value`` is the WIT's record ``error``.
    """
    calls: dict[str, Callable[..., Any]] = {}
    for interface in interfaces:
        module = modules[interface.name]
        adapted = interface.adapt(module)
        for name, method in interface.methods().items():
            call = adapted[name] if name in adapted else getattr(module, name)
            is_safe = hasattr(method, "never_fails")
            calls[name] = call if is_safe else _bind(call, failure, method)
    return SimpleNamespace(**calls)


def _bind(
    function: Callable[..., Any],
    failure: type[Exception],
    method: Callable[..., Any],
) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        try:
            return function(*args)
        except failure as error:
            if not _is_stop(error):
                raise _as_host_error(error, method, args) from None
        stop_in_call(_by_name(method, args)["ticket"])
        return call(*args)  # the host says it once

    return call


def _is_stop(error: Any) -> bool:
    """Say whether a call that waits was given up, since the program is to end."""
    name: str = error.value.code.name
    return name.lower() == "stopping"


def _by_name(method: Callable[..., Any], args: Sequence[Any]) -> dict[str, Any]:
    names = method.__code__.co_varnames[1:]  # the method's own, without `self`
    return dict(zip(names, args, strict=False))


def _as_host_error(
    error: Any, method: Callable[..., Any], args: Sequence[Any]
) -> HostError:
    code = error.value.code.name.lower().replace("_", "-")
    found = make_host_error(code, error.value.message, method.__name__)
    given = _by_name(method, args)
    found.call = method.__name__
    found.queue, found.ticket = given.get("queue"), given.get("ticket")
    for name in PAGE_PARAMETERS:
        pages = given.get(name, ())
        found.pages += (pages,) if isinstance(pages, int) else tuple(pages)
    return found
