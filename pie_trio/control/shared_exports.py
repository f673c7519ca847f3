"""Exports as one replica of a model sees them: its own, and those of the other replicas.

A page is where it was written, and so is its export. Whoever imports one elsewhere gets a copy,
since a refusal would make the outcome depend on where somebody was placed. The copy is found by
the next import on the same replica, and goes with the export, or when pages are short.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from pie_trio.control.page_transfer import read_contents
from pie_trio.errors import LimitError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pie_trio.control.exports import Export
    from pie_trio.control.pages import PagePool
    from pie_trio.control.served_model import ServedModel

__all__ = ["SharedExports"]

MAX_COPIED_SHARE = 0.5
"""Of a replica's pages that copies may have which nobody uses: some were never on the device, so
that a shortage would not find them."""


@dataclass(frozen=True, slots=True)
class _Copy:
    """The copy of an export of another replica; it is an owner of its pages.

    Attributes:
        export: Kept, so that no other one has its identity.
        pages: Virtual pages here.
    """

    export: Export
    pages: Sequence[int]


class SharedExports:
    """What inferlets on one replica export and import.

    Args:
        own: The replica.
        others: The other ones of the model, by number.

    Attributes:
        num_copied: Exports whose pages were copied here so far.
    """

    def __init__(self, own: ServedModel, others: Sequence[ServedModel] = ()) -> None:
        self._own, self._others = own, others
        self._copies: dict[
            int, _Copy
        ] = {}  # by identity of the export; unused ones first
        self._copying: dict[int, trio.Event] = {}
        self.num_copied = 0
        for other in others:
            other.exports.on_added.append(self._note_added)
            other.exports.on_released.append(self._drop_copy_of)
        own.batcher.reclaim = self.reclaim

    @property
    def num_copies(self) -> int:
        """Exports of other replicas that have a copy here."""
        return len(self._copies)

    # ---- by name ----------------------------------------------------------------------

    def make_room(self, owner: str) -> None:
        """Drop what other replicas have for nobody, of an owner with as many as there may be."""
        for other in self._others:
            other.exports.make_room(owner)

    def holder(self, owner: str, name: str) -> ServedModel:
        """Return the replica that has an owner's export; this one where none has."""
        for model in (self._own, *self._others):
            with suppress(NotFoundError):
                model.exports.find_own(owner, name)
                return model
        return self._own

    def add_to_cache(self, export: Export) -> None:
        """Add an export here that nobody misses: not if there is one of the name, or no room."""
        with suppress(NotFoundError):
            self.find_own(export.owner, export.name).used_at = export.used_at
            return
        own = self._own.exports
        if own.is_crowded(export.owner):
            return  # to look for idle ones takes milliseconds: not for each page
        self.make_room(export.owner)
        with suppress(LimitError):  # all that the owner has are in use
            own.add(export)

    def find_own(self, owner: str, name: str) -> Export:
        """Return an export of this owner, wherever it is.

        Raises:
            NotFoundError: There is none of that name.
        """
        return self.holder(owner, name).exports.find_own(owner, name)

    def find(self, owner: str, name: str) -> Export:
        """Return an export that inferlets of ``owner`` may import: see :meth:`ExportIndex.find`."""
        return self._locate(owner, name)[1]

    def list_for(self, owner: str, prefix: str) -> list[Export]:
        """Return the exports that inferlets of ``owner`` may import, by name.

        One of the owner's own named ``other/name`` hides the other's, as in :meth:`find`.
        """
        found = dict[str, "Export"]()
        for model in (self._own, *self._others):
            for export in model.exports.list_for(owner, prefix):
                name = model.exports.name_for(owner, export)
                if export.owner == owner or name not in found:
                    found[name] = export
        return [found[name] for name in sorted(found)]

    def _note_added(self, export: Export) -> None:
        """Drop the owner's of the same name, which the one on another replica replaces."""
        with suppress(NotFoundError):
            self._own.exports.remove(export.owner, export.name)

    def _locate(self, owner: str, name: str) -> tuple[ServedModel, Export]:
        """Return an export and the replica that has it.

        Raises:
            NotFoundError: As :meth:`ExportIndex.find`.
        """
        best: tuple[ServedModel, Export] | None = None
        for model in self._others:
            try:
                export = model.exports.find(owner, name)
            except NotFoundError:
                continue
            if best is None or export.owner == owner:
                best = model, export
        try:
            export = self._own.exports.find(owner, name)
        except NotFoundError:
            if best is None:
                raise
            return best
        # One of the owner's own named `other/name` hides the other's.
        if best is not None and best[1].owner == owner != export.owner:
            return best
        return self._own, export

    # ---- pages ------------------------------------------------------------------------

    def take(
        self, owner: str, name: str, count: int
    ) -> tuple[Export, list[int]] | None:
        """Find an export and become an owner of each of its pages here once more.

        Returns:
            The export and its pages on this replica; None where :meth:`bring` has to come first.

        Raises:
            NotFoundError: As :meth:`find`.
            ExportLostError: Its pages are gone.
            BadArgumentError: It has another number of pages than ``count``.
        """
        model, export = self._locate(owner, name)
        if model is self._own:
            model.exports.take(owner, name, count)
            return export, export.pages
        copy = self._copies.get(id(export))
        if copy is None:
            return None
        model.exports.take(owner, name, count)
        _release(model.pool, export.pages)  # the copy will do
        self._copies[id(export)] = self._copies.pop(id(export))  # it was used last
        return export, _shared(self._own.pool, copy.pages)

    async def bring(
        self, owner: str, name: str, count: int
    ) -> tuple[Export, list[int]] | None:
        """Copy the pages of an export of another replica, and become an owner of the copies.

        Whoever imports the same one meanwhile waits for them.

        Returns:
            As :meth:`take`; None where that has to be called again.

        Raises:
            NotFoundError: As :meth:`find`.
            ExportLostError: Its pages are gone.
            BadArgumentError: It has another number of pages than ``count``.
            EngineError: The pages cannot be read.
        """
        model, export = self._locate(owner, name)
        if model is self._own or id(export) in self._copies:
            return None
        if (copying := self._copying.get(id(export))) is not None:
            await copying.wait()
            return None
        model.exports.take(owner, name, count)
        theirs = list(export.pages)
        self._copying[id(export)] = done = trio.Event()
        try:
            reader = f"replica {self._own.number}"
            contents = await read_contents(model, theirs, reader)
        finally:
            _release(model.pool, theirs)
            del self._copying[id(export)]
            done.set()
        if contents is None:  # they are lost
            return None
        pool = self._own.pool
        pages = [pool.add_swapped(c.positions, c.filled, c.data) for c in contents]
        self.num_copied += 1
        # If it was taken back meanwhile, this import came before that, and is the only one.
        if self._is_there(model, export):
            self._copies[id(export)] = _Copy(export, _shared(pool, pages))
            self._drop_unused_over(int(MAX_COPIED_SHARE * pool.num_pages))
        return export, pages

    @staticmethod
    def _is_there(model: ServedModel, export: Export) -> bool:
        """Say whether an export has not been taken back, replaced or lost."""
        with suppress(NotFoundError):
            return model.exports.find_own(export.owner, export.name) is export
        return False

    # ---- the end of copies ------------------------------------------------------------

    def reclaim(self, num_pages: int) -> int:
        """Drop copies that nobody uses, and then exports: see :meth:`ExportIndex.reclaim`."""
        pool = self._own.pool
        enough = pool.num_free + num_pages
        num_left = 0
        for copy in self._unused():
            num_held = sum(int(pool.physical[page]) >= 0 for page in copy.pages)
            if num_held and pool.num_free < enough:
                self._drop_copy_of(copy.export)
            else:
                num_left += num_held
        return num_left + self._own.exports.reclaim(max(0, enough - pool.num_free))

    def drop_lost(self) -> None:
        """Drop copies with a page whose contents have gone with this replica's engine."""
        lost = self._own.pool.lost
        for copy in list(self._copies.values()):
            if not lost.isdisjoint(copy.pages):
                self._drop_copy_of(copy.export)

    def _unused(self) -> list[_Copy]:
        """Return the copies that nobody has imported just now, the latest used at the end."""
        pool = self._own.pool
        return [
            copy
            for copy in self._copies.values()
            if all(
                pool.num_owners(page) == 1 and not pool.num_pins(page)
                for page in copy.pages
            )
        ]

    def _drop_unused_over(self, most: int) -> None:
        """Keep at most so many pages in copies that nobody uses."""
        unused = self._unused()
        num_pages = sum(len(copy.pages) for copy in unused)
        for copy in unused:
            if num_pages <= most:
                return
            num_pages -= len(copy.pages)
            self._drop_copy_of(copy.export)

    def _drop_copy_of(self, export: Export) -> None:
        """Drop the copy of an export that is no more, if there is one."""
        copy = self._copies.pop(id(export), None)
        if copy is not None:
            _release(self._own.pool, copy.pages)


def _shared(pool: PagePool, pages: Sequence[int]) -> list[int]:
    """Become an owner of pages once more, and return them."""
    for page in pages:
        pool.share(page)
    return list(pages)


def _release(pool: PagePool, pages: Sequence[int]) -> None:
    for page in pages:
        pool.release(page)
