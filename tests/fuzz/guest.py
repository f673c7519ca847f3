"""A program that makes the calls that it is told to make; runs in Wasm as it runs natively.

It stands below the SDK: what it calls are the modules that componentize-py has made of the WIT, or
those that look like them. What a call answers, or that it fails, is all the same to it, but for the
tickets that it keeps.
"""

from __future__ import annotations

import importlib
import json
import os
from typing import Any

from inferlet_py import inferlet

MAX_STRANGE, MAX_TICKETS = 3, 100
PATIENCE_SECONDS = 0.001


def is_declared(error: Exception) -> bool:
    """Say whether an error is the WIT's own."""
    return hasattr(getattr(error, "value", None), "code")


class Caller:
    """Makes calls.

    Attributes:
        strange: Errors that no call may end with, as text.
        num_calls: That were made.
    """

    def __init__(self, modules: dict[str, Any]) -> None:
        self._modules = modules
        self._tickets: list[tuple[str, int]] = []  # with what opened them
        self.strange: list[str] = []
        self.num_calls = 0

    def run(self, calls: list[Any]) -> None:
        for module, name, arguments, waits_for, opened, takes in calls:
            try:
                if waits_for is not None and not self._is_ready(waits_for):
                    continue
                values = [self._value(argument) for argument in arguments]
                function = getattr(self._modules[module], name)
            except Exception as error:  # noqa: BLE001 - it is reported
                self._note(f"{module}.{name} cannot be called: {error!r}")
                continue
            self.num_calls += 1
            try:
                answer = function(*values)
            except Exception as error:  # noqa: BLE001 - whatever it is, the next call comes
                if not is_declared(error):
                    self._note(f"{module}.{name} raised {error!r}")
                continue
            if takes:
                taken = [v for v in values if isinstance(v, int)]
                self._tickets = [t for t in self._tickets if t[1] not in taken]
            if opened and isinstance(answer, int):
                self._tickets.append((opened, answer))
                del self._tickets[:-MAX_TICKETS]

    def _note(self, text: str) -> None:
        if len(self.strange) < MAX_STRANGE:
            self.strange.append(text[:1000])

    def _is_ready(self, ticket: Any) -> bool:
        tickets, runtime = self._modules["tickets"], self._modules["runtime"]
        number = self._value(ticket)
        self.num_calls += 2
        try:
            return number in tickets.wait([number], runtime.now() + PATIENCE_SECONDS)
        except Exception as error:
            if not is_declared(error):
                raise
            return True  # it cannot be waited for, so the call cannot wait

    def _ticket(self, age: int, opener: str) -> int:
        """Return one of the latest tickets, of those that a function opened if one is named."""
        known = [number for name, number in self._tickets if opener in ("", name)]
        return known[-age] if age <= len(known) else age

    def _value(self, given: Any) -> Any:
        if not isinstance(given, list):
            return given
        kind, *rest = given
        if kind <= 1:
            values = [self._value(item) for item in rest[0]]
            return tuple(values) if kind == 1 else values
        if kind == 2:
            return bytes.fromhex(rest[0])
        if kind == 7:
            return self._ticket(*rest)
        if kind == 8:
            return self._modules["runtime"].now() + rest[0]
        module, name, content = rest
        made = getattr(self._modules[module], name)
        if kind == 4:
            return list(made)[content]
        if kind == 5:
            return made(content)
        return made(*[self._value(item) for item in content])


def run_plan(modules: dict[str, Any], plan: str) -> dict[str, Any]:
    """Do what a plan says."""
    wanted = json.loads(plan)
    caller = Caller(modules)
    for _ in range(wanted["rounds"]):
        caller.run(wanted["calls"])
    return {"num_calls": caller.num_calls, "strange": caller.strange}


class Imports(dict[str, Any]):
    """What componentize-py has made, imported when it is needed."""

    def __missing__(self, name: str) -> Any:
        self[name] = importlib.import_module(f"wit_world.imports.{name}")
        return self[name]


def recurse(depth: int = 0) -> int:
    return recurse(depth + 1) + 1


@inferlet
async def main(plan: str = "", end: str = "return") -> dict[str, Any]:
    found = run_plan(Imports(), plan) if plan.startswith("{") else {}
    if found.get("strange"):
        return found
    if end == "raise":
        raise ValueError("as it was told to")
    if end == "exit":
        os._exit(3)
    if end == "recurse":
        recurse()
    while end == "spin":
        pass
    return found
