"""What is known of one instance from outside: all that it tells, and what it may fail with."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from tests.application.host.clients import assert_is_closed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pie_trio.application.server.running import RunningInstance
    from tests.chaos.truths import Truths

RAISED = re.compile(r"^[\s|+]*(?:[\w.]+\.)?([A-Z]\w*(?:Error|Cancelled))\b", re.M)
"""The lines of a traceback that name what was raised."""
ALWAYS = {"ChildFailedError"}
PLANNED = {"PlannedError", "Cancelled", "BrokenResourceError"}
"""Of parents that raise, and that cancel their children."""


class Followed:
    """One instance that a client has launched.

    Attributes:
        expects: Names and codes of the errors that it may end with, beside those of its plan.
        is_cut: It was ended from outside, or may have been.
        history: What it told, a line each.
        kinds: Of its events.
    """

    def __init__(
        self, instance: RunningInstance, truths: Truths, *, is_detached: bool
    ) -> None:
        self.instance, self.truths = instance, truths
        self.name, self.owner = instance.program, instance.owner.name
        self.is_detached = is_detached
        self.expects: set[str] = set()
        self.is_cut = False
        self.history: list[str] = []
        self.kinds: list[str] = []
        self._counts: dict[tuple[int, ...], int] = {}
        self._pieces: dict[tuple[int, ...], list[str]] = {}
        append = instance.events.append

        def note_and_append(kind: Any, data: Any) -> None:
            try:
                self._note(kind, data)
            except AssertionError as error:  # not the server's: it must go on as ever
                self.truths.failures.append(error)
            append(kind, data)

        instance.events.append = note_and_append  # type: ignore[method-assign]

    @property
    def instance_id(self) -> str:
        return self.instance.instance_id

    def touch(self, *errors: str) -> None:
        """Note that a fault was this one's too."""
        self.expects |= {*errors}

    def cut(self) -> None:
        """Note that it is ended from outside."""
        self.is_cut = True
        self.touch("Cancelled", "cancelled")

    # ---- what it tells -------------------------------------------------------------------

    def _note(self, kind: str, data: Any) -> None:
        assert "end" not in self.kinds, f"{kind} comes after the end"
        self.kinds.append(kind)
        shown = data.decode() if isinstance(data, bytes) else data
        self.history.append(f"{self.instance_id} {kind} {shown}")
        if kind == "message":
            self._note_message((), str(shown))
        if kind in ("result", "error"):
            self._check_closed()
        if kind == "result":
            assert data["value"] == self._counts.get((), 0), (
                f"{self.instance_id} has sent {data['value']} reports, but "
                f"{self._counts.get((), 0)} came"
            )
        elif kind == "error":
            self._check_error(data)

    def _check_closed(self) -> None:
        """Assert that it holds nothing any more: its end is told after that."""
        session: Any = self.instance._session
        try:
            assert_is_closed(session)
        except AssertionError as error:
            held = f"{self.instance_id} has ended, and still holds something: {error}"
            raise AssertionError(held) from error

    def _note_message(self, path: tuple[int, ...], text: str) -> None:
        """Take a message of the instance, or of the child to which a path leads."""
        found = json.loads(text) if text[:1] in ("[", "{") else text
        if isinstance(found, dict):
            assert found["is"] == "relayed", f"nobody has sent {text}"
            self._pieces[path].append(found["text"])
            return
        assert isinstance(found, list), f"{path} has sent {text!r}"
        number, kind, *values = found
        wanted = self._counts.get(path, 0)
        assert number == wanted, (
            f"{self.instance_id}: report {wanted} of {path} is missing, {text} came"
        )
        self._counts[path] = number + 1
        self.truths.counts[kind] += 1
        match kind:
            case "launched":
                child = (*path, values[0])
                for known in [p for p in self._counts if p[: len(child)] == child]:
                    del self._counts[known]
            case "of-child":
                self._note_message((*path, values[0]), values[1])
            case "relaying":
                self._pieces[path] = []
            case "relayed":
                pieces = "".join(self._pieces.pop(path))
                assert pieces == values[0], f"{values[0]!r} was sent as {pieces!r}"
            case _:
                self.truths.check(self.owner, kind, values, is_of_child=bool(path))

    def _check_error(self, data: Mapping[str, Any]) -> None:
        allowed = ALWAYS | self.expects
        if self.name == "families":
            allowed |= PLANNED
        text = f"{data['message']}\n{data.get('traceback', '')}"
        if data["code"] == "program-failed":
            names = {*RAISED.findall(data["traceback"]), data["kind"].split(".")[-1]}
            names -= {"ExceptionGroup", "BaseExceptionGroup"}
        else:
            names = {data["code"]}
        assert names <= allowed, (
            f"{self.instance_id} noticed what was not its own: {sorted(names - allowed)}, "
            f"expected {sorted(allowed)}:\n{text}"
        )

    # ---- at the end ----------------------------------------------------------------------

    def check_ended(self) -> None:
        """Assert that it has told its end, and why."""
        kinds, state = self.kinds, self.instance.state
        assert kinds[-1:] == ["end"], f"{self.instance_id} has told no end: {kinds}"
        assert len(kinds) > 1, "neither a result nor an error"
        assert kinds[-2] in ("result", "error"), f"{self.instance_id} ended by {kinds}"
        is_good = kinds[-2] == "result"
        assert is_good == (state == "succeeded"), f"{state} after {kinds[-2]}"
        assert state != "cancelled" or self.is_cut, "nobody has cancelled it"
