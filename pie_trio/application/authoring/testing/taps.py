"""Host functions with somebody in between: to record their answers, or to answer instead."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from pie_trio.application.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pie_trio.application.wasm.linking import HostFunction, HostInterface

__all__ = ["Tap", "tap_interfaces"]


class Tap(Protocol):
    """Stands between a program and its host."""

    def is_for(self, host: Any) -> bool:
        """Say whether it stands before this host object: those of children are others."""
        ...

    def begin(self, name: str, arguments: Sequence[Any]) -> Callable[[], Any] | None:
        """Take note of a call.

        Returns:
            What answers in the host's place; None to let the host answer.
        """
        ...

    def end(self, name: str, answer: Any) -> None:
        """Take note of the host's answer: a value, or the exception that it raised."""
        ...


def tap_interfaces(
    interfaces: Sequence[HostInterface], tap: Tap
) -> list[HostInterface]:
    """Return interfaces whose calls go through a tap."""
    return [
        replace(
            interface,
            functions={
                name: _tap(f"{interface.short_name}.{name}", function, tap)
                for name, function in interface.functions.items()
            },
        )
        for interface in interfaces
    ]


def _tap(name: str, function: HostFunction, tap: Tap) -> HostFunction:
    def call(host: Any, *arguments: Any) -> Any:
        if not tap.is_for(host):
            return function.call(host, *arguments)
        if (answer_instead := tap.begin(name, arguments)) is not None:
            return answer_instead()
        try:
            answer = function.call(host, *arguments)
        except Exception as error:
            tap.end(name, error)
            raise
        if not isinstance(answer, Waiting):
            tap.end(name, answer)
            return answer

        async def work() -> Any:
            try:
                value = await answer.work()
            except Exception as error:
                tap.end(name, error)
                raise
            tap.end(name, value)
            return value

        return Waiting(work)

    return replace(function, call=call)
