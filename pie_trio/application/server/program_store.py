"""The programs of a server: those that were uploaded, and below them those that come with Pie."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import trio

from pie_trio.application.authoring.projects import load_project
from pie_trio.application.lifecycle.programs import read_document
from pie_trio.application.server.failures import ProgramStoreError, TooLargeError
from pie_trio.application.server.limits import ServerLimits
from pie_trio.application.server.manifests import read_with_manifest
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
from pie_trio.errors import BadArgumentError, LimitError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterable,
        Awaitable,
        Callable,
        Iterator,
    )

    from pie_trio.application.authoring.manifest import Manifest
    from pie_trio.application.lifecycle.programs import SourceProgram
    from pie_trio.application.server.owners import Owner

__all__ = ["ProgramStore", "PutOutcome", "StoredProgram", "open_program_store"]

T = TypeVar("T")

PutOutcome = Literal["created", "replaced", "unchanged"]

BUILT_IN = Path(__file__).parents[2] / "programs"
README = "README.md"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_CACHED = 256
MAX_CACHED_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class StoredProgram:
    """A program that can be launched by name.

    Attributes:
        source: What it runs.
        manifest: What it says that it may do and use.
        is_built_in: It comes with Pie.
        sha256: Of what was uploaded; of its modules if it is built in.
        num_bytes: Of what was uploaded.
        uploaded_at: In seconds since 1970; None if it is built in.
        readme: What its README.md says, if it has one.
    """

    source: SourceProgram
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


class ProgramStore:
    """Programs by owner and name. Made by :func:`open_program_store`.

    Whatever has been answered is on the disk. Whenever the process ends, an upload is there as
    a whole or not at all.
    """

    def __init__(
        self,
        files: ProgramFiles,
        tables: ProgramTables,
        built_in: dict[str, StoredProgram],
        limits: ServerLimits,
    ) -> None:
        self.limits = limits
        self._files, self._tables, self._built_in = files, tables, built_in
        self._rows = {(row.owner, row.name): row for row in tables.rows()}
        self._limiter = trio.CapacityLimiter(1)  # the connection is for one thread
        # One change at a time, so that nobody removes a file that another is about to name.
        self._changing = trio.Lock()
        self._cache: dict[tuple[str, str], StoredProgram] = {}  # by name and hash

    async def find(self, name: str, *, owner: Owner) -> StoredProgram:
        """Return a program of an owner; without one, the one of that name that is built in.

        Raises:
            NotFoundError: There is none.
            ProgramStoreError: Its file cannot be read.
        """
        while (row := self._rows.get((owner.name, name))) is not None:
            if (name, row.sha256) in self._cache:
                break
            try:
                loaded = await trio.to_thread.run_sync(
                    _load, self._files, row, limiter=self._limiter
                )
            except ProgramStoreError:
                if self._rows.get((owner.name, name)) is row:  # else it was replaced
                    raise
            else:
                self._keep(loaded)
                if self._rows.get((owner.name, name)) is row:
                    return loaded
        return self.find_now(name, owner=owner)

    def sources(self, owner: Owner) -> Mapping[str, SourceProgram]:
        """Return what an owner can launch, for inferlets that launch others by name."""
        return _Sources(self, owner)

    def find_now(self, name: str, *, owner: Owner) -> StoredProgram:
        """Do what :meth:`find` does, and read the file here if it was not used lately.

        Raises what :meth:`find` does.
        """
        row = self._rows.get((owner.name, name))
        if row is not None:
            found = self._cache.get((name, row.sha256)) or _load(self._files, row)
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

    async def put(
        self,
        name: str,
        chunks: AsyncIterable[bytes],
        *,
        owner: Owner,
        check: Callable[[SourceProgram], Awaitable[object]],
    ) -> tuple[StoredProgram, PutOutcome]:
        """Store a program, in place of the owner's of that name.

        Args:
            name: What it will be launched by.
            chunks: A zip archive, or the text of one module.
            owner: Whose it will be.
            check: Raises if it cannot be used; then nothing is stored.

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
                if upload.num_bytes + len(chunk) > self.limits.max_upload_bytes:
                    raise TooLargeError(
                        f"a program may have {self.limits.max_upload_bytes} bytes as it is "
                        "sent: leave out what it does not import"
                    )
                await self._in_thread(upload.write, chunk)
            old = self._rows.get((owner.name, name))
            is_same = old is not None and old.sha256 == upload.sha256
            if is_same:
                return await self.find(name, owner=owner), "unchanged"
            program = await trio.to_thread.run_sync(_read_upload, name, upload)
            await check(program.source)
            await self._in_thread(upload.finish)
            outcome = await self._commit(upload, program, owner)
        self._keep(program)
        return program, outcome

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

    async def _commit(
        self, upload: Upload, program: StoredProgram, owner: Owner
    ) -> PutOutcome:
        """Make an upload a program, all of it or nothing."""
        row = ProgramRow(
            owner.name,
            program.name,
            program.sha256,
            program.source.digest,
            program.num_bytes,
            program.uploaded_at or 0.0,
        )
        key = (row.owner, row.name)
        async with self._changing:
            old = self._rows.get(key)
            num_owned = sum(other.owner == owner.name for other in self._rows.values())
            if old is None and num_owned >= self.limits.max_programs:
                raise LimitError(
                    f"{owner.name} has {num_owned} programs, which is as many as allowed: "
                    "delete one first"
                )
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
            await self._in_thread(self._files.remove, sha256)

    def names(self, owner: Owner) -> set[str]:
        """Return the names of what an owner can launch."""
        own = {row.name for row in self._rows.values() if row.owner == owner.name}
        return own | set(self._built_in)

    def _keep(self, program: StoredProgram) -> None:
        self._cache[program.name, program.sha256] = program
        while self._cache and (
            len(self._cache) > MAX_CACHED
            or sum(map(_weight, self._cache.values())) > MAX_CACHED_BYTES
        ):
            del self._cache[next(iter(self._cache))]

    async def _in_thread(self, work: Callable[..., T], *args: object) -> T:
        return await trio.to_thread.run_sync(work, *args, limiter=self._limiter)


class _Sources(Mapping[str, "SourceProgram"]):
    """The programs of one owner by name, as the store has them at each moment."""

    def __init__(self, store: ProgramStore, owner: Owner) -> None:
        self._store, self._owner = store, owner

    def __getitem__(self, name: str) -> SourceProgram:
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
            shipped = await trio.to_thread.run_sync(_load_built_in, built_in)
            yield ProgramStore(files, tables, shipped, limits or ServerLimits())
        finally:
            tables.close()


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise BadArgumentError(
            f"{name!r} is no name for a program: use up to 64 letters, digits, '.', '_' and "
            "'-', beginning with a letter or digit"
        )


def _load(files: ProgramFiles, row: ProgramRow) -> StoredProgram:
    data = files.read(row.sha256)
    return _make_program(row.name, data, row.sha256, row.uploaded_at)


def _read_upload(name: str, upload: Upload) -> StoredProgram:
    data = upload.contents()
    return _make_program(name, data, upload.sha256, time.time())


def _make_program(
    name: str, data: bytes, sha256: str, uploaded_at: float
) -> StoredProgram:
    source, manifest = read_with_manifest(name, data)
    return StoredProgram(
        source,
        manifest,
        is_built_in=False,
        sha256=sha256,
        num_bytes=len(data),
        uploaded_at=uploaded_at,
        readme=read_document(data, README),
    )


def _load_built_in(folder: Path) -> dict[str, StoredProgram]:
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


def _weight(program: StoredProgram) -> int:
    return sum(map(len, program.source.modules.values()))
