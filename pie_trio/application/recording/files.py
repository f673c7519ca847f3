"""The file of a recording: a header, a line for each call, and how the run ended.

The last line is the checksum of all before it, so a file that is cut short or was changed is told
from a whole one. ``recorder`` writes the lines, and ``player`` knows what they mean.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from pie_trio._version import __version__
from pie_trio.errors import ConfigError, ProgramError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["FORMAT", "MAX_BYTES", "Header", "RecordingError", "RecordingFile", "read"]

FORMAT = 2
MAX_BYTES = 256 << 20
"""Of a file: a run that has more to tell is recorded up to there."""
ROOM_FOR_END = 1 << 10
"""More than the last line takes, unless it has the result of a run: then it is left out."""
SHOWN_CHARACTERS = 40


class RecordingError(ProgramError):
    """A file is no recording that can be replayed."""


@dataclass(frozen=True, slots=True)
class Header:
    """Whose calls a file has.

    Attributes:
        program: Path of the program, as it was named.
        digest: SHA-256 of the program.
        mode: How it was run.
        models: Names of the models; the first was the default.
        pie: Version of Pie.
    """

    program: str
    digest: str
    mode: Literal["wasm", "native"]
    models: Sequence[str] = ()
    pie: str = __version__


class RecordingFile:
    """Takes the lines of a recording as they come.

    Args:
        path: Is written over.
        header: Is its first line.
        max_bytes: Of the file.

    Attributes:
        trouble: Why it takes no more lines, for its user to read; None as long as it does.

    Raises:
        ConfigError: It cannot be written.
    """

    def __init__(self, path: Path, header: Header, max_bytes: int = MAX_BYTES) -> None:
        self.trouble: str | None = None
        self._path, self._max_bytes = path, max_bytes
        self._hash, self._num_bytes = hashlib.sha256(), 0
        try:
            self._file = path.open("wb")
            self._write({"format": FORMAT, **asdict(header)})
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from error

    def add(self, line: Sequence[Any]) -> None:
        """Write a line, unless there is trouble."""
        if self.trouble is None:
            self._try_to_write(line, self._max_bytes - ROOM_FOR_END)

    def close(self, ended: str, value: Any) -> None:
        """Write how the run ended, and with what; again does nothing."""
        if self._file.closed:
            return
        if self.trouble is None:
            self._end(ended, value, self._max_bytes)
        if self.trouble is not None:  # what is there can be replayed all the same
            self._end("stopped", self.trouble, self._max_bytes + ROOM_FOR_END)
        try:
            self._file.close()
        except OSError as error:
            self._note(error)

    def _end(self, ended: str, value: Any, max_bytes: int) -> None:
        num_bytes = self._num_bytes
        self._try_to_write(["end", ended, value], max_bytes)
        if self._num_bytes > num_bytes:
            self._try_to_write(["sha256", self._hash.hexdigest()], max_bytes)

    def _try_to_write(self, line: Sequence[Any], max_bytes: int) -> None:
        try:
            self._write(line, max_bytes)
        except OSError as error:
            self._note(error)

    def _write(self, line: Any, max_bytes: int = MAX_BYTES) -> None:
        data = json.dumps(line).encode() + b"\n"
        if self._num_bytes + len(data) > max_bytes:
            self.trouble = f"the recording has reached {self._max_bytes >> 20} MiB, which is the most"
            return
        self._hash.update(data)
        self._num_bytes += len(data)
        self._file.write(data)

    def _note(self, error: OSError) -> None:
        self.trouble = f"cannot write {self._path}: {error.strerror}"


def read(path: Path) -> tuple[Header, list[bytes], tuple[str, Any]]:
    """Return the header of a recording, its lines, and how the run ended and with what.

    Raises:
        RecordingError: It cannot be read, is damaged, or of a version that is not known.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 2 * ROOM_FOR_END)
            if file.read(1):
                raise RecordingError(
                    f"{path} is no recording: it has more than {MAX_BYTES >> 20} MiB"
                )
    except OSError as error:
        raise RecordingError(f"cannot read {path}: {error.strerror}") from error
    lines = data.splitlines(keepends=True)
    header = _read_header(path, lines[0] if lines else b"")
    last = lines[-1] if data.endswith(b"\n") else b""
    if not last.startswith(b'["sha256"'):
        raise RecordingError(
            f"{path} is cut short: expected its last line to be its checksum; copy it again, "
            "or record it again"
        )
    checksum = hashlib.sha256(b"".join(lines[:-1])).hexdigest()
    if last != json.dumps(["sha256", checksum]).encode() + b"\n":
        raise RecordingError(
            f"{path} is damaged: its checksum is not that of its lines; copy it again, or "
            "record it again"
        )
    try:
        _, ended, value = json.loads(lines[-2])
    except (ValueError, TypeError, RecursionError) as error:
        raise RecordingError(
            f"{path} is damaged: its last line but one does not say how the run ended"
        ) from error
    return header, lines[1:-2], (str(ended), value)


def _read_header(path: Path, line: bytes) -> Header:
    try:
        members = json.loads(line)
        number = members.pop("format")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        shown = line[:SHOWN_CHARACTERS].decode(errors="replace")
        raise RecordingError(
            f"{path} is no recording: expected what `pie run --record` writes, and it begins "
            f"with {shown!r}"
        ) from None
    if number != FORMAT:
        raise RecordingError(
            f"{path} is a recording of format {number!r}, and this Pie ({__version__}) reads "
            f"format {FORMAT}: record it again"
        )
    try:
        return Header(**members)
    except TypeError as error:
        raise RecordingError(
            f"{path} is damaged: its first line is not that of a recording"
        ) from error
