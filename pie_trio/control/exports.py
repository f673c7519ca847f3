"""KV pages under names: they outlive the inferlet that wrote them, or are shared with others."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pie_trio.errors import BadArgumentError, LimitError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pie_trio.control.pages import PagePool

__all__ = ["Export", "ExportIndex", "Permission"]

MAX_NAME_CHARACTERS = 256
MAX_METADATA_BYTES = 1 << 20
MAX_METADATA_BYTES_OF_OWNER = 1 << 26
MAX_EXPORTS_OF_OWNER = 4096
DROPPED_AT_ONCE = 1 / 8
"""Of the exports that an owner may have: what finding the idle ones costs is shared by as many."""
MAX_PAGES_OF_OWNER = 1 << 18
"""In exports, shared ones counted each time: handles count elsewhere, and need not stay."""


@dataclass(frozen=True, slots=True)
class Permission:
    """Who may import, beside the owner.

    Attributes:
        users: These owners.
        is_published: Everybody.
    """

    users: frozenset[str] = frozenset()
    is_published: bool = False

    def allows(self, owner: str) -> bool:
        """Say whether inferlets of another owner may import."""
        return self.is_published or owner in self.users


@dataclass(slots=True)
class Export:
    """Pages under a name.

    Attributes:
        pages: Virtual pages; the export is an owner of each.
        hidden: For each page what is masked in it, ``[page_size]`` bool, or None.
        metadata: As given by the exporter.
        instance: Name of the exporter; the export ends with it unless it is persistent.
        expires_at: On trio's clock; None if it stays.
        used_at: When it was last imported, or made.
    """

    owner: str
    name: str
    pages: list[int]
    hidden: list[NDArray[np.bool_] | None]
    permission: Permission
    is_persistent: bool
    expires_at: float | None
    metadata: bytes
    instance: str
    used_at: float
    num_imports: int = field(default=0)


@dataclass(slots=True)
class _Usage:
    """What the exports of an owner take."""

    num: int = 0
    num_pages: int = 0
    num_bytes: int = 0

    def add(self, export: Export, sign: int) -> None:
        """Count an export, or with -1 one less."""
        self.num += sign
        self.num_pages += sign * len(export.pages)
        self.num_bytes += sign * len(export.metadata)


class ExportIndex:
    """The exports of one model.

    Args:
        pool: The model's pages.
        now: The time, on trio's clock.
    """

    def __init__(self, pool: PagePool, now: Callable[[], float]) -> None:
        self._pool, self._now = pool, now
        self._exports: dict[tuple[str, str], Export] = {}
        # Those that end by themselves: by time, a heap with entries of exports that are gone;
        # and by the instance that made them.
        self._ends: list[tuple[float, int, Export]] = []
        self._numbers = itertools.count()
        self._of_instance: dict[str, dict[int, Export]] = {}
        self._usage: dict[str, _Usage] = {}  # by owner

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
        self.expire()  # what is over does not count
        self._check(export)
        if (export.owner, export.name) not in self._exports:
            self._make_room(export.owner)
        self._check_usage(export)
        for page in export.pages:
            self._pool.share(page)
        key = export.owner, export.name
        replaced = self._exports.pop(key, None)
        self._exports[key] = export
        if export.expires_at is not None:
            self._end_later(export, export.expires_at)
        if not export.is_persistent:
            self._of_instance.setdefault(export.instance, {})[id(export)] = export
        self._usage.setdefault(export.owner, _Usage()).add(export, 1)
        if replaced is not None:
            self._release(replaced)

    def remove(self, owner: str, name: str) -> None:
        """Drop an export of this owner.

        Raises:
            NotFoundError: There is none of that name.
        """
        self.expire()
        export = self._exports.pop((owner, name), None)
        if export is None:
            raise NotFoundError(f"{owner} has no export {name!r}")
        self._release(export)

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
            BadArgumentError: It has another number of pages than ``count``.
        """
        export = self.find(owner, name)
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

    def drop_lost(self) -> None:
        """Drop what has a page whose contents have gone with an engine."""
        lost = self._pool.lost
        self._drop([e for e in self._exports.values() if not lost.isdisjoint(e.pages)])

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

    def _make_room(self, owner: str) -> None:
        """Drop some of an owner's exports that nobody uses, if the owner has too many."""
        if self._usage.get(owner, _Usage()).num < MAX_EXPORTS_OF_OWNER:
            return
        idle = [export for export in self._unused() if export.owner == owner]
        idle.sort(key=lambda export: export.used_at)
        self._drop(idle[: max(int(MAX_EXPORTS_OF_OWNER * DROPPED_AT_ONCE), 1)])

    def _release(self, export: Export) -> None:
        if not export.is_persistent:
            made = self._of_instance[export.instance]
            del made[id(export)]
            if not made:
                del self._of_instance[export.instance]
        usage = self._usage[export.owner]
        usage.add(export, -1)
        if not usage.num:
            del self._usage[export.owner]
        for page in export.pages:
            self._pool.release(page)

    def _check(self, export: Export) -> None:
        name = export.name
        if not 0 < len(name) <= MAX_NAME_CHARACTERS or not name.isprintable():
            raise BadArgumentError(
                f"the name of an export has 1 to {MAX_NAME_CHARACTERS} printable characters, "
                f"got {name[:40]!r}"
            )
        if not export.pages or len(set(export.pages)) != len(export.pages):
            raise BadArgumentError(
                "an export has at least one page, and none twice (forks of a page that were not "
                "written since are one page)"
            )
        if len(export.metadata) > MAX_METADATA_BYTES:
            raise LimitError(
                f"the metadata of an export has at most {MAX_METADATA_BYTES} bytes, "
                f"got {len(export.metadata)}"
            )

    def _check_usage(self, export: Export) -> None:
        name = export.name
        usage = replace(self._usage.get(export.owner, _Usage()))
        if (old := self._exports.get((export.owner, name))) is not None:
            usage.add(old, -1)
        if usage.num >= MAX_EXPORTS_OF_OWNER:
            raise LimitError(
                f"{export.owner} has {usage.num} exports, which is as many as an owner may "
                "have: take some back first"
            )
        usage.add(export, 1)
        if usage.num_bytes > MAX_METADATA_BYTES_OF_OWNER:
            raise LimitError(
                f"the metadata of {export.owner}'s exports would have {usage.num_bytes} bytes, "
                f"but {MAX_METADATA_BYTES_OF_OWNER} are the limit: take some back first"
            )
        if usage.num_pages > MAX_PAGES_OF_OWNER:
            raise LimitError(
                f"the exports of {export.owner} would have {usage.num_pages} pages, but "
                f"{MAX_PAGES_OF_OWNER} are the limit: take some back first"
            )
