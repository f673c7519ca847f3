"""What uploaded programs say of themselves, and what that means on a server."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pie_trio.application.authoring.manifest import (
    Manifest,
    parse_block,
    parse_pyproject,
)
from pie_trio.application.lifecycle.programs import read_document, read_program
from pie_trio.errors import ManifestError

if TYPE_CHECKING:
    from pie_trio.application.lifecycle.programs import SourceProgram
    from pie_trio.application.services import Grants

__all__ = ["grants_on_server", "read_with_manifest"]

PYPROJECT = "pyproject.toml"
ALL_PUBLIC, LOCAL = "*", "local://"


def read_with_manifest(name: str, data: bytes) -> tuple[SourceProgram, Manifest]:
    """Read a program that was uploaded, and its manifest, which is empty if it has none.

    Raises:
        ProgramError: It is no program.
        ManifestError: The manifest is wrong.
    """
    text = read_document(data, PYPROJECT)
    manifest = None if text is None else parse_pyproject(text)
    program = read_program(name, data, manifest.entry if manifest else "")
    block = parse_block(program.modules[program.entry], program.entry)
    if manifest is not None and block is not None:
        raise ManifestError(
            f"{name} has a block in {program.entry} and a [tool.pie] in its {PYPROJECT}: "
            "keep one"
        )
    return program, manifest or block or Manifest()


def grants_on_server(
    manifest: Manifest, offered: Grants, *, is_trusted: bool = False
) -> Grants:
    """Return what a program may do: what it names, as far as the server offers it.

    Args:
        manifest: One that names no grants is given all that are offered.
        offered: By the server.
        is_trusted: The program comes with the server, which knows what becomes of what it sees;
            hosts are offered to it as to all others.
    """
    if manifest.grants is None:
        return offered
    hosts = tuple(
        host for host in manifest.grants.http if _is_offered(host, offered.http)
    )
    granted = manifest.grants if is_trusted else manifest.granted(offered)
    return replace(granted, http=hosts)


def _is_offered(host: str, offered: tuple[str, ...]) -> bool:
    is_public = not host.startswith(LOCAL)
    return host in offered or (is_public and ALL_PUBLIC in offered)
