"""Compiled components on disk.

A compiled component is machine code that the server maps and runs: whoever can write the cache
can run anything. The directory therefore belongs to the server's user alone, and what is in it
is keyed by the component's hash, the version of wasmtime and the processor's features; wasmtime
itself refuses code of another configuration.
"""

from __future__ import annotations

import hashlib
import os
import platform
import stat
import tempfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from wasmtime import Engine, WasmtimeError, component

from pie_trio.errors import CacheError

__all__ = ["CompileCache", "make_private_directory"]


def make_private_directory(path: Path) -> Path:
    """Return ``path``, made if need be, which only this user may write.

    Raises:
        CacheError: It cannot be made, belongs to someone else, or others may write to it.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except OSError as error:
        raise CacheError(
            f"cannot make the cache directory {path}: {error.strerror}. "
            "Choose another with --cache-dir or PIE_CACHE_DIR"
        ) from error
    if found.st_uid != os.getuid():
        raise CacheError(
            f"the cache directory {path} belongs to user {found.st_uid}, not to this user "
            f"({os.getuid()}): it holds machine code that Pie runs. Choose another with "
            "--cache-dir or PIE_CACHE_DIR"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CacheError(
            f"other users may write to the cache directory {path} "
            f"(mode {stat.S_IMODE(found.st_mode):o}): it holds machine code that Pie runs. "
            f"Say: chmod 700 {path}"
        )
    return path


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, sees all of it or nothing."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except OSError as error:
        with suppress(OSError):
            Path(name).unlink()
        raise CacheError(f"cannot write {path}: {error.strerror}") from error


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()


class CompileCache:
    """Compiles components and keeps the result in ``directory``, private to this user."""

    def __init__(self, directory: Path) -> None:
        self.directory = make_private_directory(directory)

    def has(self, engine: Engine, wasm: Path) -> bool:
        """Return whether the compiled form of a component is there and fits the engine."""
        return self._find(engine, self._path_of(wasm)) is not None

    def load(self, engine: Engine, wasm: Path) -> component.Component:
        """Return the compiled component; seconds the first time, milliseconds after that.

        Raises:
            CacheError: The result cannot be written.
            WasmtimeError: ``wasm`` is no component.
        """
        path = self._path_of(wasm)
        if (found := self._find(engine, path)) is not None:
            return found
        compiled = component.Component.from_file(engine, str(wasm))  # releases the GIL
        write_whole(path, bytes(compiled.serialize()))
        return component.Component.deserialize_file(
            engine, str(path)
        )  # mapped, not copied

    def _find(self, engine: Engine, path: Path) -> component.Component | None:
        if path.exists():
            with suppress(WasmtimeError):  # cut short, or of another configuration
                return component.Component.deserialize_file(engine, str(path))
        return None

    def _path_of(self, wasm: Path) -> Path:
        digest = hashlib.sha256(wasm.read_bytes())
        for part in (
            version("wasmtime"),
            platform.system(),
            platform.machine(),
            _processor(),
        ):
            digest.update(part.encode() + b"\0")
        return self.directory / f"{digest.hexdigest()[:32]}.cwasm"
