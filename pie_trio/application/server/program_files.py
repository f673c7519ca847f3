"""The files of the uploaded programs, each named by its hash. Plain synchronous code.

A file gets its name when all of it is on the disk, and before a row names it. So whenever the
process ends, every row has its file; what has no row is removed at the next start.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Self

from pie_trio.application.server.failures import ProgramStoreError, StorageFullError
from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Generator
    from pathlib import Path

__all__ = ["ProgramFiles", "Upload", "lock_data_directory"]

HEAD_BYTES = 8
# EFBIG is what a limit on the size of files says.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def lock_data_directory(directory: Path) -> Generator[None]:
    """Make a server's data directory, and have it alone for as long as the block is open.

    Raises:
        ConfigError: It cannot be made, or another server has it.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = (directory / "server.lock").open("ab")
    except OSError as error:
        raise ConfigError(
            f"cannot use the data directory {directory}: {error.strerror}: choose another "
            "with --data-dir or PIE_DATA_DIR"
        ) from error
    with file:  # closing gives the lock back
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another server uses the data directory {directory}: stop that one, or "
                "choose another with --data-dir"
            ) from error
        yield


class Upload:
    """A program on its way to the disk. Leaving its ``with`` block removes what is left of it.

    Attributes:
        num_bytes: That have come.
        head: The first of them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_bytes = 0
        self.head = b""
        self._digest = hashlib.sha256()
        with _explained():
            self._file = path.open("xb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # it may try to write once more what found no room
            self._file.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    @property
    def sha256(self) -> str:
        """Of what has come."""
        return self._digest.hexdigest()

    def write(self, data: bytes) -> None:
        """Append a piece.

        Raises:
            StorageFullError: There is no room on the disk.
            ProgramStoreError: It cannot be written.
        """
        with _explained():
            self._file.write(data)
        self._digest.update(data)
        self.num_bytes += len(data)
        if len(self.head) < HEAD_BYTES:
            self.head = (self.head + data)[:HEAD_BYTES]

    def flush(self) -> None:
        """Let the file have all of what has come. Raises what :meth:`write` does."""
        with _explained():
            self._file.flush()

    def contents(self) -> bytes:
        """Return all of what has come. Raises what :meth:`write` does."""
        self.flush()
        with _explained():
            return self.path.read_bytes()

    def finish(self) -> None:
        """Return when all of it is on the disk. Raises what :meth:`write` does."""
        with _explained():
            self._file.flush()
            os.fsync(self._file.fileno())


class ProgramFiles:
    """The files in a directory.

    Args:
        directory: Of the server's data; made already.

    Attributes:
        adapters: The folder of adapters that were sent; they end with the server.

    Raises:
        ConfigError: The folders in it cannot be made.
    """

    def __init__(self, directory: Path) -> None:
        self._kept, self._coming = directory / "programs", directory / "uploads"
        self.adapters = directory / "adapters"
        try:
            for folder in (self._kept, self._coming, self.adapters):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot make {error.filename}: {error.strerror}"
            ) from error

    def open_upload(self) -> Upload:
        """Return a new upload. Raises what its ``write`` does."""
        return Upload(self._coming / secrets.token_hex(16))

    def keep(self, upload: Upload) -> None:
        """Give a finished upload its name. Raises what its ``write`` does."""
        with _explained():
            upload.path.replace(self.path(upload.sha256))
            _sync_directory(self._kept)

    def read(self, sha256: str) -> bytes:
        """Return the contents of a file.

        Raises:
            ProgramStoreError: It cannot be read, or was changed.
        """
        with _explained():
            data = self.path(sha256).read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ProgramStoreError(
                "the file of this program was damaged on the server's disk: deploy it again"
            )
        return data

    def remove(self, sha256: str) -> None:
        """Remove a file that no row names; one that stays is removed at the next start."""
        with suppress(OSError):
            self.path(sha256).unlink()

    def collect(self, live: Collection[str]) -> None:
        """Remove what ended servers have left: uploads, and files that no row names."""
        for path in self._coming.iterdir():
            with suppress(OSError):
                path.unlink()
        for path in self.adapters.iterdir():
            shutil.rmtree(path, ignore_errors=True)
        for path in self._kept.iterdir():
            if path.name not in live:
                with suppress(OSError):
                    path.unlink()

    def path(self, sha256: str) -> Path:
        """Return where a file is, or would be."""
        return self._kept / sha256


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained() -> Generator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ProgramStoreError(
            "a file of this program has vanished from the server's disk: deploy it again"
        ) from error
    except OSError as error:
        if error.errno in FULL:
            raise StorageFullError("the program") from error
        raise ProgramStoreError(
            f"the server's disk failed: {os.strerror(error.errno or 0)}"
        ) from error
