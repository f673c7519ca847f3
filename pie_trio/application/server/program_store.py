"""The programs of a server: those that were uploaded, and below them those that come with Pie."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import trio

from pie_trio.application.authoring.packing import is_wasm, load_packed
from pie_trio.application.background import open_background
from pie_trio.application.lifecycle.programs import ComponentProgram
from pie_trio.application.server.components import Components
from pie_trio.application.server.failures import ProgramStoreError, TooLargeError
from pie_trio.application.server.limits import ServerLimits
from pie_trio.application.server.program_files import (
    ProgramFiles,
    Upload,
    lock_data_directory,
)
from pie_trio.application.server.program_tables import (
    ProgramRow,
    ProgramTables,
    open_program_tables,
)
from pie_trio.application.server.stored_programs import (
    StoredProgram,
    load_built_in,
    load_program_file,
    read_upload,
    weight_of,
)
from pie_trio.errors import BadArgumentError, LimitError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterable,
        Awaitable,
        Callable,
        Collection,
        Iterator,
    )

    from pie_trio.application.lifecycle.programs import Program, SourceProgram
    from pie_trio.application.server.owners import Owner
    from pie_trio.application.wasm.runtime import WasmRuntime

__all__ = ["ProgramStore", "PutOutcome", "StoredProgram", "open_program_store"]

T = TypeVar("T")

PutOutcome = Literal["created", "replaced", "unchanged"]

BUILT_IN = Path(__file__).parents[2] / "programs"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_CACHED = 256
MAX_CACHED_BYTES = 64 << 20


class ProgramStore:
    """Programs by owner and name. Made by :func:`open_program_store`.

    Whatever has been answered is on the disk. Whenever the process ends, an upload is there as
    a whole or not at all.

    Attributes:
        limits: Of programs.
        components: Those programs that are components.
    """

    def __init__(
        self,
        files: ProgramFiles,
        tables: ProgramTables,
        built_in: dict[str, StoredProgram],
        limits: ServerLimits,
        components: Components,
    ) -> None:
        self.limits, self.components = limits, components
        self._files, self._tables, self._built_in = files, tables, built_in
        self._rows = {(row.owner, row.name): row for row in tables.rows()}
        self._limiter = trio.CapacityLimiter(1)  # the connection is for one thread
        # One change at a time, so that nobody removes a file that another is about to name.
        self._changing = trio.Lock()
        self._cache: dict[tuple[str, str], StoredProgram] = {}  # by name and hash

    def open_components(
        self,
        runtime: WasmRuntime,
        check: Callable[[ComponentProgram], Awaitable[object]],
    ) -> None:
        """Begin to compile the programs that are components, and those that will come.

        Args:
            runtime: Compiles them.
            check: Raises if one cannot be used.
        """
        self.components.open(runtime, check)
        for row in self._rows.values():
            if row.is_component:
                self.components.add(row.sha256, self._files.path(row.sha256))

    def row(self, name: str, *, owner: Owner) -> ProgramRow | None:
        """Return an owner's own program, whatever its state; None if there is none."""
        return self._rows.get((owner.name, name))

    async def find(
        self, name: str, *, owner: Owner, waits: bool = True
    ) -> StoredProgram:
        """Return a program of an owner; without one, the one of that name that is built in.

        Args:
            name: Of the program.
            owner: Whose it is.
            waits: For a component that is being compiled, some time.

        Raises:
            NotFoundError: There is none.
            ProgramStoreError: Its file cannot be read.
            BusyError: It is a component that is being compiled.
            ProgramError: It is a component that cannot be used.
            GuestFailedError: The same, with a traceback.
        """
        while (row := self._rows.get((owner.name, name))) is not None:
            if row.is_component:
                if waits:
                    await self.components.wait(row.sha256)
                if self._rows.get((owner.name, name)) is row:
                    break
                continue
            if (name, row.sha256) in self._cache:
                break
            try:
                loaded = await trio.to_thread.run_sync(
                    load_program_file, self._files, row, limiter=self._limiter
                )
            except ProgramStoreError:
                if self._rows.get((owner.name, name)) is row:  # else it was replaced
                    raise
            else:
                self._keep(loaded)
                if self._rows.get((owner.name, name)) is row:
                    return loaded
        return self.find_now(name, owner=owner)

    def sources(self, owner: Owner) -> Mapping[str, Program]:
        """Return what an owner can launch, for inferlets that launch others by name."""
        return _Sources(self, owner)

    def find_now(self, name: str, *, owner: Owner) -> StoredProgram:
        """Do what :meth:`find` does without waiting; the file is read if it was not lately.

        Raises what :meth:`find` does.
        """
        row = self._rows.get((owner.name, name))
        if row is not None and row.is_component:
            ready = self.components.get_now(name, row.sha256)
            return StoredProgram(
                ComponentProgram(name, ready.linked, row.digest),
                ready.manifest,
                is_built_in=False,
                sha256=row.sha256,
                num_bytes=row.num_bytes,
                uploaded_at=row.uploaded_at,
                readme=None,
            )
        if row is not None:
            found = self._cache.get((name, row.sha256)) or load_program_file(
                self._files, row
            )
            self._keep(found)
            return found
        if name in self._built_in:
            return self._built_in[name]
        known = ", ".join(sorted(self.names(owner))) or "none: deploy one"
        raise NotFoundError(f"there is no program {name!r}: the server has {known}")

    def rows(self, owner: Owner) -> list[ProgramRow | StoredProgram]:
        """Return what an owner can launch, by name; uploaded programs as rows."""
        found: dict[str, ProgramRow | StoredProgram] = dict(self._built_in)
        found |= {
            row.name: row for row in self._rows.values() if row.owner == owner.name
        }
        return [found[name] for name in sorted(found)]

    @property
    def built_in(self) -> Collection[StoredProgram]:
        """The programs that come with Pie."""
        return self._built_in.values()

    @property
    def adapter_folder(self) -> Path:
        """Where adapters are kept that were sent."""
        return self._files.adapters

    async def open_upload(self) -> Upload:
        """Return a new file for something that is sent; to be used in a ``with`` block.

        Raises:
            ProgramStoreError: It cannot be made.
        """
        return await self._in_thread(self._files.open_upload)

    async def put(
        self,
        name: str,
        chunks: AsyncIterable[bytes],
        *,
        owner: Owner,
        check: Callable[[SourceProgram], Awaitable[object]],
    ) -> tuple[ProgramRow, PutOutcome]:
        """Store a program, in place of the owner's of that name.

        A component is compiled afterwards.

        Args:
            name: What it will be launched by.
            chunks: A zip archive, the text of one module, or a component.
            owner: Whose it will be.
            check: Raises if what was sent as source cannot be used; then nothing is stored.

        Raises:
            BadArgumentError: The name is none.
            LimitError: The owner has too many programs.
            TooLargeError: It is too large.
            ProgramError: It is no program.
            StorageFullError: There is no room on the disk.
            ProgramStoreError: It cannot be written.
        """
        _check_name(name)
        upload = await self._in_thread(self._files.open_upload)
        with upload:
            async for chunk in chunks:
                self._check_size(upload, chunk)
                await self._in_thread(upload.write, chunk)
            old = self._rows.get((owner.name, name))
            if old is not None and old.sha256 == upload.sha256:
                self._add_component(old)  # again, if it failed
                return old, "unchanged"
            digest, program = upload.sha256, None
            if is_wasm(upload.head):
                await self._in_thread(upload.flush)
                await trio.to_thread.run_sync(load_packed, upload.path, name)
            else:
                source, program = await trio.to_thread.run_sync(
                    read_upload, name, upload
                )
                await check(source)
                digest = source.digest
            await self._in_thread(upload.finish)
            row = ProgramRow(
                *(owner.name, name, upload.sha256, digest),
                *(upload.num_bytes, time.time()),
            )
            outcome = await self._commit(upload, row)
        if program is not None:
            self._keep(program)
        self._add_component(row)
        return row, outcome

    async def delete(self, name: str, *, owner: Owner) -> None:
        """Remove an owner's program. Its instances run on.

        Raises:
            NotFoundError: The owner has none of that name.
            ProgramStoreError: It cannot be removed.
        """
        async with self._changing:
            row = self._rows.get((owner.name, name))
            if row is None:
                raise NotFoundError(
                    f"the program {name!r} comes with Pie: it cannot be deleted"
                    if name in self._built_in
                    else f"there is no program {name!r} to delete"
                )
            await self._in_thread(self._tables.delete, owner.name, name)
            del self._rows[owner.name, name]
            await self._remove_unnamed(row.sha256)

    def _check_size(self, upload: Upload, chunk: bytes) -> None:
        """Raise if a program would be too large with what comes next."""
        is_component = is_wasm(upload.head + chunk)
        limits = self.limits
        most = limits.max_component_bytes if is_component else limits.max_upload_bytes
        if upload.num_bytes + len(chunk) > most:
            raise TooLargeError(
                f"a {'component' if is_component else 'program'} may have {most} bytes as it "
                "is sent: leave out what it does not import"
            )

    def _add_component(self, row: ProgramRow) -> None:
        if row.is_component:
            self.components.add(row.sha256, self._files.path(row.sha256))

    def _check_room(self, row: ProgramRow, old: ProgramRow | None) -> None:
        """Raise if an owner has as many programs as allowed."""
        limits = self.limits
        owned = [other for other in self._rows.values() if other.owner == row.owner]
        if old is None and len(owned) >= limits.max_programs:
            raise LimitError(
                f"{row.owner} has {len(owned)} programs, which is as many as allowed: "
                "delete one first"
            )
        others = sum(other.is_component and other is not old for other in owned)
        if row.is_component and others >= limits.max_components:
            raise LimitError(
                f"{row.owner} has {others} components, which is as many as allowed: delete "
                "one first"
            )

    async def _commit(self, upload: Upload, row: ProgramRow) -> PutOutcome:
        """Make an upload a program, all of it or nothing."""
        key = (row.owner, row.name)
        async with self._changing:
            old = self._rows.get(key)
            self._check_room(row, old)
            try:
                # Once begun it is not cancelled, so that the rows here are those on the disk.
                await self._in_thread(self._store, upload, row)
            except ProgramStoreError:
                await self._remove_unnamed(row.sha256)
                raise
            self._rows[key] = row
            if old is not None:
                await self._remove_unnamed(old.sha256)
        return "created" if old is None else "replaced"

    def _store(self, upload: Upload, row: ProgramRow) -> None:
        self._files.keep(upload)
        self._tables.put(row)

    async def _remove_unnamed(self, sha256: str) -> None:
        """Remove a file that no program has any more; if cancelled, the next start does."""
        if all(row.sha256 != sha256 for row in self._rows.values()):
            self.components.forget(sha256)
            await self._in_thread(self._files.remove, sha256)

    def names(self, owner: Owner) -> set[str]:
        """Return the names of what an owner can launch."""
        own = {row.name for row in self._rows.values() if row.owner == owner.name}
        return own | set(self._built_in)

    def _keep(self, program: StoredProgram) -> None:
        self._cache[program.name, program.sha256] = program
        while self._cache and (
            len(self._cache) > MAX_CACHED
            or sum(map(weight_of, self._cache.values())) > MAX_CACHED_BYTES
        ):
            del self._cache[next(iter(self._cache))]

    async def _in_thread(self, work: Callable[..., T], *args: object) -> T:
        return await trio.to_thread.run_sync(work, *args, limiter=self._limiter)


class _Sources(Mapping[str, "Program"]):
    """The programs of one owner by name, as the store has them at each moment."""

    def __init__(self, store: ProgramStore, owner: Owner) -> None:
        self._store, self._owner = store, owner

    def __getitem__(self, name: str) -> Program:
        try:
            return self._store.find_now(name, owner=self._owner).source
        except NotFoundError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._store.names(self._owner)))

    def __len__(self) -> int:
        return len(self._store.names(self._owner))


@asynccontextmanager
async def open_program_store(
    directory: Path,
    *,
    limits: ServerLimits | None = None,
    built_in: Path = BUILT_IN,
) -> AsyncGenerator[ProgramStore]:
    """Offer the programs of a data directory, which this server has alone meanwhile.

    Args:
        directory: Made if need be.
        limits: None for the defaults.
        built_in: The folder with the programs that come with Pie, one folder each.

    Raises:
        ConfigError: The directory cannot be used, or another server has it.
    """
    with lock_data_directory(directory):
        files = ProgramFiles(directory)
        tables = open_program_tables(directory / "programs.db")
        try:
            files.collect({row.sha256 for row in tables.rows()})
            shipped = await trio.to_thread.run_sync(load_built_in, built_in)
            limits = limits or ServerLimits()
            async with open_background() as background:
                components = Components(background, wait_seconds=limits.compile_seconds)
                yield ProgramStore(files, tables, shipped, limits, components)
        finally:
            tables.close()


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise BadArgumentError(
            f"{name!r} is no name for a program: use up to 64 letters, digits, '.', '_' and "
            "'-', beginning with a letter or digit"
        )
