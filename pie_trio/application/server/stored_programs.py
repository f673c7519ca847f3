"""Programs as a server has them at hand, and how they are read: from files, uploads, folders."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pie_trio.application.authoring.projects import load_project
from pie_trio.application.lifecycle.programs import SourceProgram, read_document
from pie_trio.application.server.manifests import read_with_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from pie_trio.application.authoring.manifest import Manifest
    from pie_trio.application.lifecycle.programs import Program
    from pie_trio.application.server.program_files import ProgramFiles, Upload
    from pie_trio.application.server.program_tables import ProgramRow

__all__ = [
    "StoredProgram",
    "load_built_in",
    "load_program_file",
    "read_upload",
    "weight_of",
]

README = "README.md"


@dataclass(frozen=True, slots=True)
class StoredProgram:
    """A program that can be launched by name.

    Attributes:
        source: What it runs; a component is compiled.
        manifest: What it says that it may do and use.
        is_built_in: It comes with Pie.
        sha256: Of what was uploaded; of its modules if it is built in.
        num_bytes: Of what was uploaded.
        uploaded_at: In seconds since 1970; None if it is built in.
        readme: What its README.md says, if it has one.
    """

    source: Program
    manifest: Manifest
    is_built_in: bool
    sha256: str
    num_bytes: int
    uploaded_at: float | None
    readme: str | None

    @property
    def name(self) -> str:
        """What it is launched by."""
        return self.source.name


def load_program_file(files: ProgramFiles, row: ProgramRow) -> StoredProgram:
    """Return a program that was sent as source, from its file.

    Raises:
        ProgramStoreError: The file cannot be read.
    """
    data = files.read(row.sha256)
    source, manifest = read_with_manifest(row.name, data)
    return _make_program(source, manifest, data, row.sha256, row.uploaded_at)


def read_upload(name: str, upload: Upload) -> tuple[SourceProgram, StoredProgram]:
    """Return the program in an upload, what it runs first.

    Raises:
        ProgramError: It is no program, or its manifest is wrong.
        ProgramStoreError: The upload cannot be read.
    """
    data = upload.contents()
    source, manifest = read_with_manifest(name, data)
    made = _make_program(source, manifest, data, upload.sha256, time.time())
    return source, made


def _make_program(
    source: SourceProgram,
    manifest: Manifest,
    data: bytes,
    sha256: str,
    uploaded_at: float,
) -> StoredProgram:
    return StoredProgram(
        source,
        manifest,
        is_built_in=False,
        sha256=sha256,
        num_bytes=len(data),
        uploaded_at=uploaded_at,
        readme=read_document(data, README),
    )


def load_built_in(folder: Path) -> dict[str, StoredProgram]:
    """Return the programs of a folder by name, one folder each."""
    found = dict[str, StoredProgram]()
    for path in sorted(folder.glob("*/app.py")):
        project = load_project(path.parent)
        source = project.program
        num_bytes = sum(len(text.encode()) for text in source.modules.values())
        readme = path.with_name(README)
        text = readme.read_text() if readme.exists() else None
        found[source.name] = StoredProgram(
            source,
            project.manifest,
            is_built_in=True,
            sha256=source.digest,
            num_bytes=num_bytes,
            uploaded_at=None,
            readme=text,
        )
    return found


def weight_of(program: StoredProgram) -> int:
    """Return the number of characters that a program which was sent as source keeps."""
    source = program.source
    assert isinstance(source, SourceProgram), "components are kept elsewhere"
    return sum(map(len, source.modules.values()))
