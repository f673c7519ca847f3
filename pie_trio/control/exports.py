"""KV pages under names: they outlive the inferlet that wrote them, or are shared with others."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from typing import TYPE_CHECKING

from pie_trio.control import export_limits
from pie_trio.control.export_limits import Usage, check_export, check_usage
from pie_trio.control.exported import Export, Permission
from pie_trio.errors import BadArgumentError, ExportLostError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pie_trio.control.pages import PagePool

__all__ = ["Export", "ExportIndex", "Permission"]

DROPPED_AT_ONCE = 1 / 8
"""Of the exports that an owner may have: what finding the idle ones costs is shared by as many."""


CROWDED_SECONDS = 1.0
"""For so long after it was found that all exports of an owner are in use, caches do not ask again."""


class ExportIndex:
    """The exports of one model.

    Args:
        pool: The model's pages.
        now: The time, on trio's clock.
        model: Its name, for messages.
        forget: Takes an export out of the register, by its number there, soon; None where
            there is no register.

    Attributes:
        on_added: Each is told of a new export.
        on_released: Each is told of an export whose pages are given back.
    """

    def __init__(
        self,
        pool: PagePool,
        now: Callable[[], float],
        *,
        model: str = "the model",
        forget: Callable[[int], None] | None = None,
    ) -> None:
        self._pool, self._now = pool, now
        self._model, self._forget = model, forget
        self._loss = ""
        self._exports: dict[tuple[str, str], Export] = {}
        # Those that end by themselves: by time, a heap with entries of exports that are gone;
        # and by the instance that made them.
        self._ends: list[tuple[float, int, Export]] = []
        self._numbers = itertools.count()
        self._of_instance: dict[str, dict[int, Export]] = {}
        self._usage: dict[str, Usage] = {}  # by owner
        self._crowded: dict[str, float] = {}  # owners, until when
        self.on_added: list[Callable[[Export], None]] = []
        self.on_released: list[Callable[[Export], None]] = []

    def count_with(self, other: ExportIndex) -> None:
        """Count what owners have in both together. This one has no export yet."""
        self._usage = other._usage

    def __len__(self) -> int:
        return len(self._exports)

    @property
    def pages(self) -> list[int]:
        """The virtual pages of all exports, each as often as it was exported."""
        return [page for export in self._exports.values() for page in export.pages]

    def add(self, export: Export) -> None:
        """Add an export, or replace the owner's of that name. It becomes an owner of its pages.

        Of an owner who has as many as there may be, the persistent ones that nobody uses and
        that were least recently used are dropped.

        Raises:
            BadArgumentError: The name or the metadata is not usable.
            LimitError: The owner has too many.
        """
        self.admit(export)
        self.adopt(export)

    def admit(self, export: Export) -> None:
        """Own the pages of an export that :meth:`adopt` adds, or :meth:`turn_down` gives back.

        Raises what :meth:`add` does.
        """
        self.expire()  # what is over does not count
        check_export(export)
        replaced = self._exports.get((export.owner, export.name))
        if replaced is None:
            self.make_room(export.owner)
        check_usage(self._usage.get(export.owner, Usage()), export, replaced)
        for page in export.pages:
            self._pool.share(page)
        self._usage.setdefault(export.owner, Usage()).add(export, 1)

    def adopt(self, export: Export) -> None:
        """Add an export that was admitted. The owner's of that name is replaced."""
        key = export.owner, export.name
        replaced = self._exports.pop(key, None)
        self._exports[key] = export
        if export.expires_at is not None:
            self._end_later(export, export.expires_at)
        if not export.is_persistent:
            self._of_instance.setdefault(export.instance, {})[id(export)] = export
        if replaced is not None:
            # A record was replaced by one of the same name.
            self._release(replaced, forgets=export.record is None)
        for tell in self.on_added:
            tell(export)
        if not self._pool.lost.isdisjoint(export.pages):
            self._lose(export)

    def turn_down(self, export: Export) -> None:
        """Give the pages of an export back that was admitted."""
        self._uncount(export)

    def restore(self, export: Export) -> None:
        """Add a lost export of an earlier server, whatever the limits."""
        self._usage.setdefault(export.owner, Usage()).add(export, 1)
        self.adopt(export)

    def remove(self, owner: str, name: str) -> None:
        """Drop an export of this owner.

        Raises:
            NotFoundError: There is none of that name.
        """
        self.drop(self.find_own(owner, name))

    def find_own(self, owner: str, name: str) -> Export:
        """Return an export of this owner. Raises what :meth:`remove` does."""
        self.expire()
        export = self._exports.get((owner, name))
        if export is None:
            raise NotFoundError(f"{owner} has no export {name!r}")
        return export

    def drop(self, export: Export) -> None:
        """Drop an export, unless it has ended or was replaced."""
        if self._has(export):
            self._drop([export])

    def find(self, owner: str, name: str) -> Export:
        """Return an export that inferlets of ``owner`` may import.

        Args:
            owner: On whose behalf.
            name: One of the owner's own, or ``other/name``.

        Raises:
            NotFoundError: There is none, or it may not be imported: nobody can tell which.
        """
        self.expire()
        export = self._exports.get((owner, name))
        if export is None and "/" in name:
            other, _, rest = name.partition("/")
            export = self._exports.get((other, rest))
            if export is not None and not self._may(owner, export):
                export = None
        if export is None:
            raise NotFoundError(
                f"there is no export {name!r} that {owner} may import: export it first, or wait "
                "until somebody has"
            )
        return export

    def take(self, owner: str, name: str, count: int) -> Export:
        """Find an export and become an owner of each of its pages once more.

        Raises:
            NotFoundError: As :meth:`find`.
            ExportLostError: Its pages are gone.
            BadArgumentError: It has another number of pages than ``count``.
        """
        export = self.find(owner, name)
        if export.loss:
            raise ExportLostError(
                export.loss,
                model=self._model,
                owner=export.owner,
                name=export.name,
                num_pages=export.num_lost,
                made_at=export.made_at,
            )
        if count != len(export.pages):
            raise BadArgumentError(
                f"the export {name!r} has {len(export.pages)} pages, but {count} numbers are "
                "given for them: look it up first"
            )
        for page in export.pages:
            self._pool.share(page)
        export.num_imports += 1
        export.used_at = self._now()
        return export

    def list_for(self, owner: str, prefix: str) -> list[Export]:
        """Return the exports that inferlets of ``owner`` may import, by name.

        One of the owner's own named ``other/name`` hides the other's, as in :meth:`find`.
        """
        self.expire()
        found: dict[str, Export] = {}
        for export in self._exports.values():
            name = self.name_for(owner, export)
            if not name.startswith(prefix) or not self._may(owner, export):
                continue
            if export.owner == owner or name not in found:
                found[name] = export
        return [found[name] for name in sorted(found)]

    def name_for(self, owner: str, export: Export) -> str:
        """Return the name under which inferlets of ``owner`` import it."""
        return export.name if export.owner == owner else f"{export.owner}/{export.name}"

    def end_instance(self, instance: str) -> None:
        """Drop what an inferlet exported for its own lifetime only."""
        self._drop(list(self._of_instance.get(instance, {}).values()))

    def lose(self, reason: str) -> None:
        """Empty what has a page whose contents have gone with an engine; caches are dropped.

        Args:
            reason: For whoever imports one.
        """
        self._loss = reason
        lost = self._pool.lost
        for export in list(self._exports.values()):
            if not lost.isdisjoint(export.pages):
                self._lose(export)

    def clear(self) -> None:
        """Drop all exports."""
        self._drop(list(self._exports.values()))

    def expire(self) -> None:
        """Drop what is older than its time to live."""
        while self._ends and self._ends[0][0] <= self._now():
            export = heapq.heappop(self._ends)[2]
            if self._has(export):
                self._drop([export])

    def reclaim(self, num_pages: int) -> int:
        """Drop persistent exports that nobody uses, least recently used first.

        Args:
            num_pages: Stop once so many pages are free by that; 0 drops nothing.

        Returns:
            How many pages could still be had.
        """
        self.expire()
        idle = sorted(self._idle(), key=lambda export: export.used_at)
        enough = self._pool.num_free + num_pages
        while idle and self._pool.num_free < enough:
            self._drop([idle.pop(0)])
        pages = {page for export in idle for page in export.pages}
        return sum(int(self._pool.physical[page]) >= 0 for page in pages)

    def _idle(self) -> list[Export]:
        """Return those of the unused ones that have a page on the device."""
        return [
            export
            for export in self._unused()
            if any(int(self._pool.physical[page]) >= 0 for page in export.pages)
        ]

    def _unused(self) -> list[Export]:
        """Return the persistent exports whose pages belong to such exports alone."""
        pool = self._pool
        idle = [export for export in self._exports.values() if export.is_persistent]
        num_left = -1
        # One that is in use keeps those that share its pages.
        while len(idle) != num_left:
            num_left = len(idle)
            counts = Counter(page for export in idle for page in export.pages)
            idle = [
                export
                for export in idle
                if all(
                    pool.num_owners(page) == counts[page] and not pool.num_pins(page)
                    for page in export.pages
                )
            ]
        return idle

    def _may(self, owner: str, export: Export) -> bool:
        return export.owner == owner or export.permission.allows(owner)

    def _drop(self, exports: Sequence[Export]) -> None:
        for export in exports:
            del self._exports[export.owner, export.name]
            self._release(export)

    def _end_later(self, export: Export, when: float) -> None:
        if len(self._ends) > 2 * len(self._exports):  # most of them are gone
            self._ends = [entry for entry in self._ends if self._has(entry[2])]
            heapq.heapify(self._ends)
        heapq.heappush(self._ends, (when, next(self._numbers), export))

    def _has(self, export: Export) -> bool:
        return self._exports.get((export.owner, export.name)) is export

    def make_room(self, owner: str) -> None:
        """Drop some of an owner's exports that nobody uses, if the owner has too many."""
        most = export_limits.MAX_EXPORTS_OF_OWNER
        if self._usage.get(owner, Usage()).num < most:
            return
        idle = [export for export in self._unused() if export.owner == owner]
        idle.sort(key=lambda export: export.used_at)
        self._drop(idle[: max(int(most * DROPPED_AT_ONCE), 1)])
        if not idle:
            self._crowded[owner] = self._now() + CROWDED_SECONDS

    def is_crowded(self, owner: str) -> bool:
        """Say whether :meth:`make_room` found a moment ago that all of an owner's are in use."""
        if self._crowded.get(owner, 0.0) > self._now():
            return self._usage[owner].num >= export_limits.MAX_EXPORTS_OF_OWNER
        self._crowded.pop(owner, None)
        return False

    def _lose(self, export: Export) -> None:
        if export.is_cache:
            self._drop([export])
            return
        self._uncount(export)
        export.loss, export.num_lost = self._loss, len(export.pages)
        export.pages, export.hidden = [], []
        self._usage.setdefault(export.owner, Usage()).add(export, 1)

    def _release(self, export: Export, *, forgets: bool = True) -> None:
        if not export.is_persistent:
            made = self._of_instance[export.instance]
            del made[id(export)]
            if not made:
                del self._of_instance[export.instance]
        self._uncount(export)
        if forgets and self._forget is not None and export.record is not None:
            self._forget(export.record)

    def _uncount(self, export: Export) -> None:
        """Give the pages of an export back, and what it counts."""
        for tell in self.on_released:
            tell(export)
        usage = self._usage[export.owner]
        usage.add(export, -1)
        if not usage.num:
            del self._usage[export.owner]
        for page in export.pages:
            self._pool.release(page)
