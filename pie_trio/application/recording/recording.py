"""``pie run --record``: one run, written to a file; without a file all of this does nothing."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from pie_trio.application.recording.files import Header
from pie_trio.application.recording.native_system import NativeSystem
from pie_trio.application.recording.recorder import Recorder
from pie_trio.application.recording.taps import tap_interfaces

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from pie_trio.application.host.session import Session
    from pie_trio.application.wasm.linking import HostInterface
    from pie_trio.config import ModelConfig

__all__ = ["Recording"]


class Recording:
    """A run's recording; in its block the run happens, and its end closes the file.

    Args:
        path: Of the file; None to record nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._recorder = None if path is None else Recorder()
        self._system = None if self._recorder is None else NativeSystem(self._recorder)

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, _type: object, error: BaseException | None, _traceback: object
    ) -> None:
        if self._recorder is None:
            return
        if error is not None:
            self._recorder.fail(error)
        if self._recorder.trouble:
            sys.stderr.write(
                f"pie: the recording ends before the run: {self._recorder.trouble}\n"
            )

    def adapt(self, interfaces: list[HostInterface]) -> list[HostInterface]:
        """Put the recorder between programs and the host."""
        if self._recorder is None:
            return interfaces
        return tap_interfaces(interfaces, self._recorder)

    @contextmanager
    def system(self) -> Generator[None]:
        """Record clocks and random bytes of a native program in the block."""
        if self._system is None:
            yield
            return
        with self._system.active():
            yield

    def open(
        self,
        program: Path,
        digest: str,
        mode: Literal["wasm", "native"],
        models: Sequence[ModelConfig],
    ) -> None:
        """Begin the file, now that it is known what is run.

        Raises:
            ConfigError: It cannot be written.
        """
        if self._recorder is not None and self._path is not None:
            names = [model.name for model in models]
            header = Header(str(program), digest, mode, names)
            self._recorder.open(self._path, header)

    def watch(self, session: Session) -> None:
        """Record this one, and not its children."""
        if self._recorder is not None:
            self._recorder.host = session

    def note(self, result: str) -> str:
        """Take note of the result, as JSON, and return it."""
        if self._recorder is not None:
            self._recorder.finish(json.loads(result))
        return result
