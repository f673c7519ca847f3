"""Host functions with somebody in between: to record their answers, or to answer instead."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from pie_trio.application.waiting import Waiting
from pie_trio.application.wasm.values import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pie_trio.application.wasm.linking import HostFunction, HostInterface

__all__ = [
    "MONOTONIC_CLOCK",
    "RANDOM",
    "SLEEP",
    "SYSTEM_CALLS",
    "WALL_CLOCK",
    "Tap",
    "tap_interfaces",
]

RANDOM = "random.get-random-bytes"
WALL_CLOCK = "wall-clock.now"
MONOTONIC_CLOCK = "monotonic-clock.now"
SLEEP = "poll.[method]pollable.block"
SYSTEM_CALLS = frozenset(
    {
        *(RANDOM, "random.get-random-u64", "insecure-seed.insecure-seed"),
        *(WALL_CLOCK, MONOTONIC_CLOCK),
        *("poll.poll", SLEEP, "poll.[method]pollable.ready"),
    }
)
"""Of WASI, those whose answers differ between two runs. The others answer always the same."""


class Tap(Protocol):
    """Stands between a program and its host."""

    def is_for(self, host: Any) -> bool:
        """Say whether it stands before this host object: those of children are others."""
        ...

    def begin(
        self, name: str, arguments: Sequence[Any], *, may_fail: bool = False
    ) -> Callable[[], Any] | None:
        """Take note of a call.

        Args:
            name: Of the interface and the function.
            arguments: Of the call.
            may_fail: Whether its type has an error.

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
    """Return interfaces whose calls go through a tap; of WASI's only the system calls do."""
    return [
        replace(
            interface,
            functions={
                name: _tap(f"{interface.short_name}.{name}", function, tap)
                if _is_tapped(interface, name)
                else function
                for name, function in interface.functions.items()
            },
        )
        for interface in interfaces
    ]


def _is_tapped(interface: HostInterface, name: str) -> bool:
    is_system = interface.name.startswith("wasi:")
    return not is_system or f"{interface.short_name}.{name}" in SYSTEM_CALLS


def _tap(name: str, function: HostFunction, tap: Tap) -> HostFunction:
    may_fail = isinstance(function.result, Result)

    def call(host: Any, *arguments: Any) -> Any:
        if not tap.is_for(host):
            return function.call(host, *arguments)
        answer_instead = tap.begin(name, arguments, may_fail=may_fail)
        if answer_instead is not None:
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
