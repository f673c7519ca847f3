"""Adapters that are loaded and dropped while models are served, and the files of those sent here.

An engine reads the files again when it has been restarted, so they stay until the adapter goes.
What was sent is not kept beyond the server's end.
"""

from __future__ import annotations

import secrets
import shutil
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from pie_trio.application.server.failures import StorageFullError, TooLargeError
from pie_trio.application.server.program_files import FULL
from pie_trio.errors import (
    AdapterError,
    BadArgumentError,
    BusyError,
    ForbiddenError,
    NotFoundError,
)
from pie_trio.inference.adapters.directory import CONFIG_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Mapping
    from pathlib import Path

    from pie_trio.application.server.owners import Owner
    from pie_trio.application.server.program_store import ProgramStore
    from pie_trio.control.served_model import ServedModel

__all__ = ["ServedAdapters"]

CHUNK_BYTES = 1 << 20


@dataclass(slots=True)
class _Loaded:
    """What is known of an adapter that was loaded while the server ran.

    Attributes:
        owner: Name of who has loaded it.
        sent: The folder of what was sent; None for a directory of the machine.
        is_ready: It has been loaded.
    """

    owner: str
    sent: Path | None
    is_ready: bool = False


class ServedAdapters:
    """Loads and drops adapters of all models. They are everybody's who runs programs here.

    Args:
        models: By name; the first is the default.
        programs: Have the folder for what is sent.
        max_bytes: Of an adapter that is sent, packed and unpacked.
    """

    def __init__(
        self, models: Mapping[str, ServedModel], programs: ProgramStore, max_bytes: int
    ) -> None:
        self._models, self._folder = models, programs.adapter_folder
        self._programs, self._max_bytes = programs, max_bytes
        self._loaded: dict[tuple[str, str], _Loaded] = {}
        self._limiter = trio.CapacityLimiter(1)

    def list(self) -> list[dict[str, Any]]:
        """Return all adapters, by model."""
        found = list[dict[str, Any]]()
        for model, served in self._models.items():
            for name in served.info.adapters:
                known = self._loaded.get((model, name))
                owner = None if known is None else known.owner
                found.append({"name": name, "model": model, "loaded_by": owner})
        return found

    async def load(
        self, model: str, name: str, directory: Path, *, owner: Owner
    ) -> None:
        """Load an adapter from a directory of this machine.

        Raises:
            AdapterError: It cannot be used with this model, or the name cannot be had.
            BusyError: One of this name is being loaded.
            NotFoundError: There is no such model.
        """
        await self._load(model, name, directory, _Loaded(owner.name, None))

    async def load_sent(
        self, model: str, name: str, body: AsyncIterable[bytes], *, owner: Owner
    ) -> None:
        """Load an adapter that is sent as a zip archive of what PEFT has saved.

        Raises:
            AdapterError: As :meth:`load`, or it is no such archive.
            BusyError: One of this name is being loaded.
            NotFoundError: There is no such model.
            StorageFullError: There is no room for it on the disk.
            TooLargeError: It is larger than allowed.
        """
        self._check_free(self._find(model), name)  # before much is sent
        folder = self._folder / secrets.token_hex(16)
        try:
            with await self._programs.open_upload() as upload:
                async for data in body:
                    self._check_size(upload.num_bytes + len(data))
                    await self._in_thread(upload.write, data)
                await self._in_thread(upload.flush)
                await self._in_thread(self._unpack, upload.path, folder)
            await self._load(model, name, folder, _Loaded(owner.name, folder))
        finally:
            known = self._loaded.get((self._find(model).info.name, name))
            if known is None or known.sent != folder:
                shutil.rmtree(folder, ignore_errors=True)

    def drop(self, model: str, name: str, *, owner: Owner) -> None:
        """Forget an adapter.

        Raises:
            AdapterError: A command that has not ended uses it.
            ForbiddenError: Somebody else has loaded it.
            NotFoundError: There is no such model or adapter.
        """
        served = self._find(model)
        if name not in served.info.adapters:
            have = ", ".join(served.info.adapters) or "none"
            raise NotFoundError(
                f"{served.info.name} has no adapter {name!r}: it has {have}"
            )
        known = self._loaded.get((served.info.name, name))
        if not owner.is_admin and (known is None or known.owner != owner.name):
            raise ForbiddenError(
                f"the adapter {name} was not loaded by {owner.name}: who has loaded it may drop "
                "it, and who has a key with the scope admin"
            )
        served.replicas.drop_adapter(name)
        self._forget(served.info.name, name)

    async def _load(
        self, model: str, name: str, directory: Path, loaded: _Loaded
    ) -> None:
        served = self._find(model)
        self._check_free(served, name)
        key = served.info.name, name
        self._forget(*key)
        self._loaded[key] = loaded
        try:
            await served.replicas.load_adapter(name, directory)
        finally:
            # Also where the client has left: then it is loaded all the same.
            loaded.is_ready = name in served.info.adapters
            if not loaded.is_ready:
                del self._loaded[key]

    def _check_free(self, served: ServedModel, name: str) -> None:
        if name in served.info.adapters:
            raise AdapterError(
                f"there is an adapter {name} already: drop it first, or choose another name"
            )
        known = self._loaded.get((served.info.name, name))
        if known is not None and not known.is_ready:
            raise BusyError(f"an adapter {name} is being loaded: wait for it")

    def _find(self, model: str) -> ServedModel:
        if not model:
            return next(iter(self._models.values()))
        if model not in self._models:
            raise NotFoundError(
                f"there is no model {model!r}: the server has {', '.join(self._models)}"
            )
        return self._models[model]

    def _forget(self, model: str, name: str) -> None:
        known = self._loaded.pop((model, name), None)
        if known is not None and known.sent is not None:
            shutil.rmtree(known.sent, ignore_errors=True)

    async def _in_thread(self, function: Any, *args: Any) -> None:
        await trio.to_thread.run_sync(function, *args, limiter=self._limiter)

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self._max_bytes:
            raise TooLargeError(
                f"an adapter that is sent has at most {self._max_bytes} bytes, packed and "
                "unpacked: ask whoever runs the server to load it from a directory there"
            )

    def _unpack(self, path: Path, folder: Path) -> None:
        """Take the two files of an adapter out of an archive; others stay where they are."""
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                configs = [n for n in names if n.rpartition("/")[2] == CONFIG_FILE]
                if len(configs) != 1:
                    raise BadArgumentError(
                        f"the archive has {len(configs)} files {CONFIG_FILE}: send one adapter, "
                        "as PEFT has saved it"
                    )
                base = configs[0].removesuffix(CONFIG_FILE)
                if base + WEIGHTS_FILE not in names:
                    raise BadArgumentError(
                        f"the archive has no {base}{WEIGHTS_FILE}: save the adapter with PEFT, "
                        "and with safetensors"
                    )
                folder.mkdir(mode=0o700)
                num_bytes = 0
                for name in (CONFIG_FILE, WEIGHTS_FILE):
                    with archive.open(base + name) as source:
                        with (folder / name).open("xb") as target:
                            while data := source.read(CHUNK_BYTES):
                                num_bytes += len(data)
                                self._check_size(num_bytes)
                                target.write(data)
        except OSError as error:
            with suppress(OSError):
                shutil.rmtree(folder)
            if error.errno in FULL:
                raise StorageFullError("the adapter") from error
            raise AdapterError(
                f"the adapter cannot be kept: {error.strerror}"
            ) from error
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            RuntimeError,
            EOFError,
        ) as error:
            # RuntimeError: it is encrypted.
            raise BadArgumentError(
                f"the body is no zip archive that can be read: {error}"
            ) from error
