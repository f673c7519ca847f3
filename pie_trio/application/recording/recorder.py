"""Writes down what enters a run: the answers to its calls, the time, and random bytes.

A program does nothing but what follows from these. Its children are what it saw of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pie_trio.application.recording.files import Header, RecordingFile
from pie_trio.application.recording.taps import SYSTEM_CALLS
from pie_trio.application.recording.values import encode
from pie_trio.errors import EngineError, GuestFailedError, InferletError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Recorder", "kind_of"]


class Recorder:
    """Writes each call and its answer to a file. A :class:`~.taps.Tap`.

    Attributes:
        host: The host object of the program, once there is one.
    """

    def __init__(self) -> None:
        self._file: RecordingFile | None = None
        self._early: list[Sequence[Any]] = []  # what came before there was a file
        self._call: tuple[str, Any] | None = None
        self.host: Any = None

    @property
    def trouble(self) -> str | None:
        """Why the recording ends before the run; None if it does not."""
        return None if self._file is None else self._file.trouble

    def open(self, path: Path, header: Header) -> None:
        """Write to this file from now on, and what was noted so far.

        Raises:
            ConfigError: It cannot be written.
        """
        self._file = RecordingFile(path, header)
        for line in self._early:
            self._file.add(line)

    def is_for(self, host: Any) -> bool:
        """Say whether it is the host object of the program."""
        return host is self.host

    def begin(
        self, name: str, arguments: Sequence[Any], *, may_fail: bool = False
    ) -> None:
        """Take note of a call. A program waits for one answer at a time."""
        if name not in SYSTEM_CALLS:
            self._call = name, encode(list(arguments))

    def end(self, name: str, answer: Any) -> None:
        """Take note of its answer."""
        if isinstance(answer, Exception) and not isinstance(
            answer, InferletError | EngineError
        ):
            return  # a bug of the host's, which nobody replays
        if name in SYSTEM_CALLS:
            self._add(["system", name, encode(answer)])
            return
        assert self._call is not None, "a call begins before it ends"
        assert self._call[0] == name, "a program waits for one answer at a time"
        self._add(["call", *self._call, encode(answer)])
        self._call = None

    def finish(self, result: Any) -> None:
        """Take note of the program's result, and close the file."""
        if self._file is not None:
            self._file.close("returned", encode(result))

    def fail(self, error: BaseException) -> None:
        """Take note that it has failed, or was ended from outside, and close the file.

        A program that raised will raise again. What else ends one (a limit, a signal) did not
        follow from its calls, so a replay goes up to there.
        """
        if self._file is None:
            return
        kind = kind_of(error)
        if self._call is not None:
            self._file.add(["call", *self._call])  # which has no answer
        if isinstance(error, GuestFailedError):
            self._file.close("raised", kind)
        else:
            self._file.close("stopped", f"the run ended with {kind}")

    def _add(self, line: Sequence[Any]) -> None:
        if self._file is None:
            self._early.append(line)
        else:
            self._file.add(line)


def kind_of(error: BaseException) -> str:
    """Return the name of what a program raised, or of what ended it."""
    if isinstance(error, GuestFailedError):
        return error.kind
    return type(error).__name__
