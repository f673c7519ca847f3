"""The adapters of an engine, by name: they come and go while others run. No torch in here."""

from __future__ import annotations

import re
import threading
from collections import Counter
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Generic, TypeVar

from pie_trio.errors import AdapterError, EngineError
from pie_trio.inference.adapters.directory import hash_directory

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from pathlib import Path

    from pie_trio.engine_api import ForwardRequest, ModelInfo

__all__ = ["NO_ADAPTERS", "AdapterTable", "WithAdapters"]

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")
NO_ADAPTERS: AbstractContextManager[None] = nullcontext()
"""Entered by a batch without any."""


class AdapterTable(Generic[T]):
    """What has been read of each adapter, by name. Any thread may call everything.

    A name stands for the same weights for as long as the engine lives: what contexts and shared
    prefixes hold was computed with them, and is found again by the name.

    Attributes:
        changing: Held by an engine that brings its info up to date.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, T] = {}
        self._digests: dict[str, bytes] = {}
        self._in_use = Counter[str]()
        self._lock, self.changing = threading.Lock(), threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """Of those that are loaded, in the order of loading."""
        with self._lock:
            return tuple(self._loaded)

    def check(self, name: str, digest: bytes) -> None:
        """Check whether an adapter could be added.

        Raises:
            AdapterError: The name is impossible, loaded, or that of other weights.
        """
        if not _NAME.fullmatch(name):
            raise AdapterError(
                "the name of an adapter has letters, digits and _ . / - in it, and begins with "
                f"one of the first three, but it is {name!r}"
            )
        if name in self._loaded:
            raise AdapterError(
                f"there is an adapter {name} already: drop it first, or choose another name"
            )
        if self._digests.get(name, digest) != digest:
            raise AdapterError(
                f"the adapter {name} was loaded from other files before, and what was computed "
                "with it may still be shared under that name: choose another one"
            )

    def add(self, name: str, digest: bytes, adapter: T) -> None:
        """Add one that was read.

        Raises:
            AdapterError: As :meth:`check`.
        """
        with self._lock:
            self.check(name, digest)
            self._loaded[name], self._digests[name] = adapter, digest

    def drop(self, name: str) -> None:
        """Forget one.

        Raises:
            AdapterError: It is not loaded, or a step is using it.
        """
        with self._lock:
            if name not in self._loaded:
                raise AdapterError(
                    f"there is no adapter {name} to drop: loaded are "
                    f"{', '.join(self._loaded) or 'none'}"
                )
            if self._in_use[name]:
                raise AdapterError(
                    f"the adapter {name} is in use: drop it when what uses it has ended"
                )
            del self._loaded[name]

    def use(
        self, forwards: Sequence[ForwardRequest]
    ) -> AbstractContextManager[Mapping[str, T] | None]:
        """Keep the adapters of a batch from being dropped; enter for them, by name.

        None where the batch has no adapters.

        Raises:
            EngineError: On entering, if one is not loaded.
        """
        names = [forward.adapter for forward in forwards]
        return self._use(names) if any(names) else NO_ADAPTERS

    def close(self) -> None:
        """Forget all. Idempotent."""
        with self._lock:
            self._loaded.clear()

    @contextmanager
    def _use(self, names: Sequence[str]) -> Generator[Mapping[str, T]]:
        with self._lock:
            for index, name in enumerate(names):
                if name and name not in self._loaded:
                    raise EngineError(
                        f"request {index} of the batch: the adapter {name!r} is not loaded, "
                        f"only {[*self._loaded]}"
                    )
            found = {name: self._loaded[name] for name in names if name}
            self._in_use.update(found.keys())
        try:
            yield found
        finally:
            with self._lock:
                self._in_use.subtract(found.keys())


class WithAdapters(Generic[T]):
    """The methods of an engine that are about adapters; it has both attributes."""

    _info: ModelInfo
    _adapters: AdapterTable[T]

    def load_adapter(self, name: str, directory: Path | str) -> None:
        """See :meth:`pie_trio.engine_api.Engine.load_adapter`."""
        digest = hash_directory(directory)
        self._adapters.check(name, digest)  # before what takes long
        self._adapters.add(name, digest, self.read_adapter(directory, digest))
        self._refresh_info()

    def drop_adapter(self, name: str) -> None:
        """See :meth:`pie_trio.engine_api.Engine.drop_adapter`."""
        self._adapters.drop(name)
        self._refresh_info()

    def read_adapter(self, directory: Path | str, digest: bytes) -> T:
        """Return what the engine keeps of an adapter.

        Args:
            directory: That PEFT has saved.
            digest: Of its files.

        Raises:
            AdapterError: The engine cannot run it.
        """
        raise NotImplementedError

    def _refresh_info(self) -> None:
        with self._adapters.changing:
            self._info = replace(self._info, adapters=self._adapters.names)
