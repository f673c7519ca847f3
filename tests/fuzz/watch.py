"""What stands between the guests and their host: it counts calls, and looks at what they end with."""

from __future__ import annotations

import traceback
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import trio

from pie_trio.application.waiting import Waiting
from pie_trio.application.wasm.values import Result
from pie_trio.errors import CancelledError, EngineError, InferletError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pie_trio.application.wasm.linking import HostFunction, HostInterface

UNDECLARED = frozenset({"internal", "engine-failed", "engine-lost"})
"""Codes that no call of a guest may lead to while the engine is well."""
NATIVE_WAIT_SECONDS = 0.05
"""A native guest is not cancelled from outside: its waits end by themselves."""


class Seen:
    """What one instance did.

    Attributes:
        num_calls: So far.
        at_call: Called before the call of that number.
        is_native: Its waits are bounded.
    """

    def __init__(self) -> None:
        self.num_calls = 0
        self.at_call: tuple[int, Callable[[], None]] | None = None
        self.is_native = False


class Watch:
    """Adapts host functions, as ``link_language`` lets one.

    Attributes:
        counts: How often which function (``interface.function``) ended with which code, or
            with ``ok``.
        bugs: What no call may end with.
    """

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.bugs: list[str] = []
        self._seen: dict[Any, Seen] = {}

    @property
    def num_calls(self) -> int:
        """Calls of guests, that ended, so far."""
        return self.counts.total()

    def of(self, session: Any) -> Seen:
        """Return what is known of an instance; forgotten by :meth:`forget`."""
        return self._seen.setdefault(session, Seen())

    def forget(self) -> None:
        """Forget instances and bugs, not counts."""
        self._seen.clear()
        self.bugs.clear()

    def adapt(self, interfaces: list[HostInterface]) -> list[HostInterface]:
        """Return interfaces whose calls are seen; WASI's are not."""
        return [
            interface
            if interface.name.startswith("wasi:")
            else replace(
                interface,
                functions={
                    name: self._see(f"{interface.short_name}.{name}", function)
                    for name, function in interface.functions.items()
                },
            )
            for interface in interfaces
        ]

    def _see(self, name: str, function: HostFunction) -> HostFunction:
        may_fail = isinstance(function.result, Result)

        def call(host: Any, *arguments: Any) -> Any:
            seen = self.of(host)
            seen.num_calls += 1
            if seen.at_call is not None and seen.at_call[0] == seen.num_calls:
                seen.at_call[1]()
            try:
                answer = function.call(host, *arguments)
            except Exception as error:
                self._failed(name, error, may_fail=may_fail)
                raise
            if not isinstance(answer, Waiting):
                self.counts[name, "ok"] += 1
                return answer
            return Waiting(lambda: wait(seen, answer))

        async def wait(seen: Seen, answer: Waiting) -> Any:
            try:
                limit = NATIVE_WAIT_SECONDS if seen.is_native else float("inf")
                with trio.move_on_after(limit) as scope:
                    value = await answer.work()
                if scope.cancelled_caught:
                    raise CancelledError("a native guest waits no longer")
            except Exception as error:
                self._failed(name, error, may_fail=may_fail)
                raise
            except BaseException:
                self.counts[name, "dropped"] += 1
                raise
            self.counts[name, "ok"] += 1
            return value

        return replace(function, call=call)

    def _failed(self, name: str, error: Exception, *, may_fail: bool) -> None:
        is_declared = may_fail and isinstance(error, InferletError | EngineError)
        code = getattr(error, "code", type(error).__name__)
        self.counts[name, code] += 1
        if not is_declared or code in UNDECLARED:
            shown = "".join(traceback.format_exception(error)[-6:])
            self.bugs.append(f"{name} ended with {code}: {shown}")
