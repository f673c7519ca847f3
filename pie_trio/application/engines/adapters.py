"""Which adapters an engine in a process has, so that the next process has them too."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pie_trio.errors import AdapterError
from pie_trio.inference.adapters.directory import hash_directory
from pie_trio.inference.adapters.table import AdapterTable

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["KeptAdapters"]

logger = logging.getLogger(__name__)


class KeptAdapters:
    """The adapters of one model by name, across the processes of its engine.

    A name stands for the same files in all of them: pages in host memory outlive a process.
    """

    def __init__(self) -> None:
        self._table = AdapterTable[str]()
        self._directories: dict[str, str] = {}

    def check(self, name: str, directory: Path | str) -> None:
        """Check whether an adapter could be added.

        Raises:
            AdapterError: As :meth:`AdapterTable.check`, or its files cannot be read.
        """
        self._table.check(name, hash_directory(directory))

    def add(self, name: str, directory: Path | str) -> None:
        """Add one that the engine has loaded.

        Raises:
            AdapterError: As :meth:`check`.
        """
        self._table.add(name, hash_directory(directory), str(directory))
        self._directories[name] = str(directory)

    def drop(self, name: str) -> None:
        """Forget one that the engine has forgotten."""
        if self._directories.pop(name, None) is not None:
            self._table.drop(name)

    def reload(self) -> list[tuple[str, str]]:
        """Return names and directories for a new process; what has changed meanwhile goes."""
        for name, directory in [*self._directories.items()]:
            self.drop(name)
            try:
                self.add(name, directory)
            except AdapterError as error:
                self.note_failure(name, error)
        return [*self._directories.items()]

    def note_failure(self, name: str, error: Exception) -> None:
        """Forget one that the new process could not load."""
        logger.warning("the adapter %s is dropped: %s", name, error)
        self.drop(name)
