"""Writes down what enters a run: the answers to its calls, the time, and random bytes.

A program does nothing but what follows from these. Its children are what it saw of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pie_trio.application.recording.files import Header, RecordingFile
from pie_trio.application.recording.taps import SYSTEM_CALLS
from pie_trio.application.recording.values import encode
from pie_trio.errors import EngineError, InferletError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Recorder", "kind_of"]


class Recorder:
    """Writes each call and its answer to a file. A :class:`~.taps.Tap`.

    Args:
        path: Of the file.
        header: Its first line.

    Attributes:
        host: The host object of the program, once there is one.

    Raises:
        ConfigError: The file cannot be written.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self._file = RecordingFile(path, header)
        self._call: tuple[str, Any] | None = None
        self.host: Any = None

    @property
    def trouble(self) -> str | None:
        """Why the recording ends before the run; None if it does not."""
        return self._file.trouble

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
            self._file.add(["system", name, encode(answer)])
            return
        assert self._call is not None, "a call begins before it ends"
        assert self._call[0] == name, "a program waits for one answer at a time"
        self._file.add(["call", *self._call, encode(answer)])
        self._call = None

    def finish(self, result: Any) -> None:
        """Take note of the program's result, and close the file."""
        self._file.close("returned", encode(result))

    def fail(self, error: BaseException) -> None:
        """Take note that it has failed, or was ended from outside, and close the file.

        A program that raised will raise again. What else ends one (a limit, a signal) did not
        follow from its calls, so a replay goes up to there.
        """
        kind = kind_of(error)
        if self._call is not None:
            self._file.add(["call", *self._call])  # which has no answer
        if hasattr(error, "kind"):
            self._file.close("raised", kind)
        else:
            self._file.close("stopped", f"the run ended with {kind}")


def kind_of(error: BaseException) -> str:
    """Return the name of what a program raised, or of what ended it."""
    return str(getattr(error, "kind", type(error).__name__))
