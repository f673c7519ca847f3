"""Programs as they are sent to a server: one module as it is, else a zip archive."""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING

from pie_trio.application.lifecycle.programs import load_program
from pie_trio.errors import ProgramError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["pack_program"]

README = "README.md"
OLDEST = (1980, 1, 1, 0, 0, 0)
"""The time of every file, so that the same program is the same archive."""


def pack_program(path: Path) -> tuple[str, bytes]:
    """Return the name and the contents of a program.

    Args:
        path: A ``.py`` file, a folder with an ``app.py``, or a ``.zip`` of one.

    Raises:
        ProgramError: It is none of these, or cannot be read.
    """
    program = load_program(path)
    if not path.is_dir():
        return program.name, _read(path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        names = [*sorted(program.modules), README]
        for name in names:
            if name == README and not (path / name).is_file():
                continue
            item = zipfile.ZipInfo(name, OLDEST)
            item.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(item, _read(path / name))
    return program.name, buffer.getvalue()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ProgramError(f"cannot read {path}: {error.strerror}") from error
