"""The dashboard's files, read once: small, and the same for everybody."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["StaticFile", "read_static_files"]

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class StaticFile:
    """One file.

    Attributes:
        data: Its contents.
        content_type: For the header of that name.
        etag: Differs where the contents do; unquoted.
    """

    data: bytes
    content_type: str
    etag: str


def read_static_files() -> Mapping[str, StaticFile]:
    """Return the files by name; of kinds that are not known there are none."""
    found = dict[str, StaticFile]()
    folder = files("pie_trio.application.dashboard") / "static"
    for path in folder.iterdir():
        content_type = TYPES.get(PurePosixPath(path.name).suffix)
        if content_type is not None:
            data = path.read_bytes()
            etag = hashlib.sha256(data).hexdigest()[:24]
            found[path.name] = StaticFile(data, content_type, etag)
    return found
