"""Compiled components on disk.

A compiled component is machine code that the server maps and runs: whoever can write the cache
can run anything. The directory therefore belongs to the server's user alone, and what is in it
is keyed by the component's hash, the version of wasmtime and the processor's features; wasmtime
itself refuses code of another configuration.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import stat
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from wasmtime import Engine, WasmtimeError, component

from pie_trio.errors import CacheError, DamagedComponentError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = [
    "CompileCache",
    "WasmEngine",
    "lock_directory",
    "make_private_directory",
    "run_in_thread",
    "write_whole",
]

T = TypeVar("T")
WasmEngine = Engine

UNUSED_SECONDS = 30 * 24 * 3600
"""A compiled component that nobody used for so long is removed."""


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
    """Write a file so that a reader, or a crash, sees all of it or nothing.

    Raises:
        CacheError: It cannot be written.
    """
    part: Path | None = None
    try:
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=path.name, suffix=".part"
        )
        part = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        part.replace(path)
    except OSError as error:
        raise CacheError(f"cannot write {path}: {error.strerror}") from error
    finally:  # also after Ctrl-C
        if part is not None:
            with suppress(OSError):
                part.unlink()


@contextmanager
def lock_directory(directory: Path) -> Generator[None]:
    """Have the cache alone, so that two first runs do the slow work once.

    Raises:
        CacheError: The lock file cannot be opened.
    """
    try:
        file = (make_private_directory(directory) / ".lock").open("wb")
    except OSError as error:
        raise CacheError(f"cannot write to {directory}: {error.strerror}") from error
    with file:  # closing gives the lock back
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run_in_thread(function: Callable[[], T]) -> T:
    """Call a function that stays in C for long, so that a signal is handled meanwhile."""
    results: list[T] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - raised by the caller
            errors.append(error)

    # A daemon, so that a process that was told to end does not wait for it.
    thread = threading.Thread(target=call, name="pie-compile", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
    if errors:
        raise errors[0]
    return results[0]


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
            DamagedComponentError: ``wasm`` is no component.
        """
        path = self._path_of(wasm)
        if (found := self._find(engine, path)) is not None:
            with suppress(OSError):
                os.utime(path)  # when it was used last
            return found
        try:
            compiled = run_in_thread(
                lambda: component.Component.from_file(engine, str(wasm))
            )
        except WasmtimeError as error:
            raise DamagedComponentError(f"cannot compile {wasm}: {error}") from error
        write_whole(path, bytes(compiled.serialize()))
        self._remove_unused()
        return component.Component.deserialize_file(
            engine, str(path)
        )  # mapped, not copied

    def _find(self, engine: Engine, path: Path) -> component.Component | None:
        if path.exists():
            with suppress(WasmtimeError):  # cut short, or of another configuration
                return component.Component.deserialize_file(engine, str(path))
        return None

    def _remove_unused(self) -> None:
        oldest = time.time() - UNUSED_SECONDS
        for path in self.directory.glob("*.cwasm"):
            with suppress(OSError):  # another process may remove it as well
                if path.stat().st_mtime < oldest:
                    path.unlink()

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
