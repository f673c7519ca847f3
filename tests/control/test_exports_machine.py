"""Exports: who sees which, what they hold, and when they end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from pie_trio.control import export_limits
from pie_trio.control.exports import Export, ExportIndex, Permission
from pie_trio.control.pages import UNBOUND, PagePool
from pie_trio.errors import (
    BadArgumentError,
    ExportLostError,
    LimitError,
    NotFoundError,
)
from tests.control.machines import CountedMachine

if TYPE_CHECKING:
    from collections.abc import Sequence

NUM_PAGES, PAGE_SIZE = 8, 2
INSTANCES = {"ann-1": "ann", "ann-2": "ann", "bob-1": "bob", "cid-1": "cid"}
OWNERS = sorted(set(INSTANCES.values()))
NAMES = ["x", "y", "bob/x", "prefix/x"]
MAX_EXPORTS, MAX_METADATA = 2, 20
"""Of an owner, here: the real limits would take long to reach."""

BAD: dict[str, dict[str, Any]] = {
    "an empty name": {"name": ""},
    "a long name": {"name": "x" * 257},
    "a name with a line break": {"name": "a\nb"},
    "no pages": {"pages": []},
    "the same page twice": {"pages": [0, 0]},
}

INDEX = st.integers(0, 99)
INSTANCE = st.sampled_from(list(INSTANCES))
OWNER = st.sampled_from(OWNERS)
NAME = st.sampled_from(NAMES)
ASKED = st.sampled_from([*NAMES, *NAMES, "ann/x", "ann/bob/x", "cid/y", "/", "q"])
PERMISSION = st.sampled_from(
    [
        Permission(),
        Permission(frozenset({"ann"})),
        Permission(frozenset({"bob", "cid"})),
        Permission(is_published=True),
        Permission(is_published=True),
    ]
)
SECONDS = st.sampled_from([0, 0, 0, 0, 0, 1, 4])


@dataclass(eq=False)
class Kept:
    """What one export should be."""

    owner: str
    name: str
    pages: list[int]
    permission: Permission
    is_persistent: bool
    expires_at: float | None
    metadata: bytes
    instance: str
    used_at: float
    num_imports: int = 0
    loss: str = ""
    num_lost: int = 0

    @property
    def key(self) -> tuple[str, str]:
        return self.owner, self.name

    def lose(self, reason: str) -> None:
        self.loss, self.num_lost, self.pages = reason, len(self.pages), []

    def is_for(self, owner: str) -> bool:
        if owner == self.owner or self.permission.is_published:
            return True
        return owner in self.permission.users


@dataclass
class Plain:
    """The exports by name, and whatever else holds pages."""

    kept: dict[tuple[str, str], Kept] = field(default_factory=dict)
    handles: dict[str, list[int]] = field(
        default_factory=lambda: {instance: [] for instance in INSTANCES}
    )
    pins: list[int] = field(default_factory=list)
    coming: list[tuple[Kept, Export]] = field(default_factory=list)

    def all_of(self, owner: str) -> list[Kept]:
        """Return what counts for an owner, with what is not there yet."""
        every = [*self.kept.values(), *(kept for kept, _ in self.coming)]
        return [kept for kept in every if kept.owner == owner]

    def expire(self, now: float) -> None:
        for key, kept in list(self.kept.items()):
            if kept.expires_at is not None and kept.expires_at <= now:
                del self.kept[key]

    def find(self, owner: str, name: str) -> Kept | None:
        if own := self.kept.get((owner, name)):
            return own
        other, _, rest = name.partition("/")
        kept = self.kept.get((other, rest))
        return kept if kept is not None and kept.is_for(owner) else None

    def owners(self) -> Counter[int]:
        return Counter(
            [page for pages in self.handles.values() for page in pages]
            + [page for kept in self.kept.values() for page in kept.pages]
            + [page for kept, _ in self.coming for page in kept.pages]
        )

    def idle(self) -> list[Kept]:
        """Return what can go, least recently used first.

        All persistent exports can, but those that hold a page that somebody else holds: a
        handle, a command, or an export that cannot go.
        """
        used = {
            *self.pins,
            *(page for pages in self.handles.values() for page in pages),
            *(page for kept, _ in self.coming for page in kept.pages),
        }
        idle = list(self.kept.values())
        while True:
            others = [kept for kept in self.kept.values() if kept not in idle]
            used |= {page for kept in others for page in kept.pages}
            left = [k for k in idle if k.is_persistent and used.isdisjoint(k.pages)]
            if left == idle:
                return sorted(idle, key=lambda kept: kept.used_at)
            idle = left

    def make_room(self, owner: str) -> None:
        """Drop the least recently used export that can go, of an owner who has too many."""
        idle = [kept for kept in self.idle() if kept.owner == owner]
        if len(self.all_of(owner)) >= MAX_EXPORTS and idle:
            del self.kept[idle[0].owner, idle[0].name]


class ExportMachine(CountedMachine):
    """An index of exports beside a plain model of it, for several inferlets of three users.

    Time stands still but at the start of a step, so that what it ends is ended by the calls
    themselves.
    """

    def __init__(self) -> None:
        super().__init__()
        self.limits = patch.multiple(
            export_limits,
            MAX_EXPORTS_OF_OWNER=MAX_EXPORTS,
            MAX_METADATA_BYTES_OF_OWNER=MAX_METADATA,
        )
        self.limits.start()
        self.now = 0.0
        self.pool = PagePool(num_pages=NUM_PAGES, page_size=PAGE_SIZE)
        self.index = ExportIndex(self.pool, lambda: self.now)
        self.plain = Plain()
        self.num_losses = 0

    def pass_time(self, seconds: float) -> None:
        self.now += seconds + 0.001  # no two are used at the same time

    def pick(self, instance: str, picks: Sequence[int]) -> list[int]:
        """Return different pages of an inferlet."""
        held = self.plain.handles[instance]
        found = [held[pick % len(held)] for pick in picks] if held else []
        return list(dict.fromkeys(found))

    # ---- pages ------------------------------------------------------------------------

    @rule(
        instance=INSTANCE,
        count=st.integers(1, 2),
        is_written=st.just(True) | st.booleans(),
    )
    def allocate(self, instance: str, count: int, is_written: bool) -> None:
        self.allocate_pages(instance, count, is_written=is_written)

    def allocate_pages(self, instance: str, count: int, *, is_written: bool) -> None:
        pages = [self.pool.allocate() for _ in range(count)]
        assert not set(pages) & self.plain.owners().keys(), "never lent twice"
        self.plain.handles[instance] += pages
        if is_written and count <= self.pool.num_free:
            self.pool.bind(np.array(pages, np.int32))

    @rule(instance=INSTANCE, picks=st.lists(INDEX, min_size=1, max_size=3))
    def release(self, instance: str, picks: list[int]) -> None:
        for page in self.pick(instance, picks):
            self.plain.handles[instance].remove(page)
            self.pool.release(page)

    @precondition(lambda self: len(self.plain.pins) < 2)
    @rule(instance=INSTANCE, pick=INDEX)
    def pin(self, instance: str, pick: int) -> None:
        for page in self.pick(instance, [pick]):
            self.pool.pin(np.array([page], np.int32))
            self.plain.pins.append(page)

    @precondition(lambda self: self.plain.pins)
    @rule(pick=INDEX)
    def unpin(self, pick: int) -> None:
        page = self.plain.pins.pop(pick % len(self.plain.pins))
        self.pool.unpin(np.array([page], np.int32))

    @precondition(lambda self: self.index.pages)
    @rule(pick=INDEX)
    def swap_out(self, pick: int) -> None:
        """Move a page of an export to host memory, if it is on the device and not in use."""
        pages = [page for kept in self.plain.kept.values() for page in kept.pages]
        page = pages[pick % len(pages)]
        if self.pool.physical[page] >= 0 and page not in self.plain.pins:
            self.pool.swap_out([page], np.zeros((1, 4), np.uint8))

    # ---- exports ----------------------------------------------------------------------

    @rule(
        instance=INSTANCE,
        picks=st.lists(INDEX, min_size=1, max_size=3),
        name=NAME,
        permission=PERMISSION,
        is_persistent=st.booleans() | st.just(True),
        seconds_to_live=st.none() | st.none() | st.sampled_from([1.0, 3.0]),
        num_bytes=st.sampled_from([0, 0, 6, 15]),
        seconds=SECONDS,
        is_recorded=st.sampled_from([False, False, True]),
    )
    def export(
        self,
        instance: str,
        picks: list[int],
        name: str,
        permission: Permission,
        is_persistent: bool,
        seconds_to_live: float | None,
        num_bytes: int,
        seconds: float,
        is_recorded: bool = False,
    ) -> None:
        """Export pages; one that is to be recorded is there later, or never."""
        self.pass_time(seconds)
        if not self.plain.handles[instance]:
            self.allocate_pages(instance, 2, is_written=True)
        pages = self.pick(instance, picks)
        kept = Kept(
            INSTANCES[instance],
            name,
            pages,
            permission,
            is_persistent,
            None if seconds_to_live is None else self.now + seconds_to_live,
            bytes(num_bytes),
            instance,
            self.now,
        )
        self.plain.expire(self.now)
        if (kept.owner, name) not in self.plain.kept:
            self.plain.make_room(kept.owner)
        replaced = self.plain.kept.get(kept.key)
        others = [k for k in self.plain.all_of(kept.owner) if k is not replaced]
        num_all = num_bytes + sum(len(other.metadata) for other in others)
        if len(others) >= MAX_EXPORTS or num_all > MAX_METADATA:
            with pytest.raises(LimitError):
                self.index.add(export_of(kept))
        elif is_recorded:
            export = export_of(kept)
            self.index.admit(export)
            self.plain.coming.append((kept, export))
        else:
            self.index.add(export_of(kept))
            self.note_added(kept, self.pool.lost)

    @precondition(lambda self: self.plain.coming)
    @rule(is_recorded=st.sampled_from([True, True, False]))
    def settle(self, is_recorded: bool) -> None:
        """Let the disk have the first of those that are on their way, or not."""
        kept, export = self.plain.coming.pop(0)
        lost = set(self.pool.lost)  # before pages that nobody holds are free again
        if is_recorded:
            self.index.adopt(export)
            self.note_added(kept, lost)
        else:
            self.index.turn_down(export)

    def note_added(self, kept: Kept, lost: set[int]) -> None:
        self.plain.kept.pop(kept.key, None)
        self.plain.kept[kept.key] = kept
        self.note_lost([kept], lost)

    @precondition(lambda self: self.plain.kept and not self.plain.pins)
    @rule()
    def lose_engine(self) -> None:
        """Everything on the device is gone; exports stay, but for those that are a cache."""
        on_device = [p for p in self.plain.owners() if self.pool.physical[p] >= 0]
        self.pool.positions[on_device, 0] = 0  # they were written
        self.num_losses += 1
        self.pool.lose_device()
        self.index.lose(f"for the {self.num_losses}. time")
        self.note_lost(list(self.plain.kept.values()), set(on_device))

    def note_lost(self, several: list[Kept], lost: set[int]) -> None:
        for kept in several:
            if not lost.isdisjoint(kept.pages):
                kept.lose(f"for the {self.num_losses}. time")
                if kept.name.startswith("prefix/") and not kept.metadata:
                    del self.plain.kept[kept.key]

    @rule(
        instance=INSTANCE,
        names=st.lists(NAME, min_size=1, max_size=3),
        released=st.sampled_from([[0], [0, 1, 2]]),
    )
    def publish(self, instance: str, names: list[str], released: list[int]) -> None:
        """Export some of the same pages for everybody, and give handles back."""
        for pick, name in enumerate(names):
            self.export(
                instance,
                [pick, 0],
                name,
                Permission(is_published=True),
                True,
                None,
                0,
                0,
            )
        self.release(instance, released)

    @rule(instance=INSTANCE, bad=st.sampled_from(list(BAD)))
    def export_badly(self, instance: str, bad: str) -> None:
        kept = Kept(
            INSTANCES[instance], "x", [0], Permission(), True, None, b"", instance, 0.0
        )
        for name, value in BAD[bad].items():
            setattr(kept, name, value)
        with pytest.raises(BadArgumentError):
            self.index.add(export_of(kept))

    @precondition(lambda self: self.plain.kept)
    @rule(owner=OWNER, name=NAME, seconds=SECONDS)
    def remove(self, owner: str, name: str, seconds: float) -> None:
        self.pass_time(seconds)
        self.plain.expire(self.now)
        if self.plain.kept.pop((owner, name), None) is None:
            with pytest.raises(NotFoundError):
                self.index.remove(owner, name)
        else:
            self.index.remove(owner, name)

    @rule(
        instance=INSTANCE,
        name=ASKED,
        extra=st.sampled_from([0, 0, 0, 1, -1]),
        seconds=SECONDS,
    )
    def take(self, instance: str, name: str, extra: int, seconds: float) -> None:
        """Import what somebody may have exported."""
        self.pass_time(seconds)
        self.plain.expire(self.now)
        owner = INSTANCES[instance]
        kept = self.plain.find(owner, name)
        if kept is None:
            with pytest.raises(NotFoundError):
                self.index.take(owner, name, 1)
        elif kept.loss:
            with pytest.raises(ExportLostError) as found:
                self.index.take(owner, name, extra)
            error = found.value
            assert (error.owner, error.name, error.reason) == (*kept.key, kept.loss)
            assert error.num_pages == kept.num_lost
        elif extra:
            with pytest.raises(BadArgumentError):
                self.index.take(owner, name, len(kept.pages) + extra)
        else:
            taken = self.index.take(owner, name, len(kept.pages))
            assert taken.pages == kept.pages
            kept.num_imports += 1
            kept.used_at = self.now
            self.plain.handles[instance] += kept.pages

    @rule(owner=OWNER, prefix=st.sampled_from(["", "x", "bob/", "a"]), seconds=SECONDS)
    def look_around(self, owner: str, prefix: str, seconds: float) -> None:
        """What is listed can be found under its name, and what can be found is listed."""
        self.pass_time(seconds)
        self.plain.expire(self.now)
        found = self.index.list_for(owner, prefix)
        names = [self.index.name_for(owner, export) for export in found]
        assert names == sorted(set(names))
        for name, export in zip(names, found, strict=True):
            assert self.index.find(owner, name) is export
        every = [*NAMES, *(f"{other}/{name}" for other in OWNERS for name in NAMES)]
        expected: set[str] = set()
        for name in every:
            kept = self.plain.find(owner, name)
            if kept is not None:
                expected.add(kept.name if kept.owner == owner else name)
        assert names == sorted(name for name in expected if name.startswith(prefix))

    @rule(owner=OWNER, name=ASKED, seconds=SECONDS)
    def find(self, owner: str, name: str, seconds: float) -> None:
        self.pass_time(seconds)
        self.plain.expire(self.now)
        kept = self.plain.find(owner, name)
        if kept is None:
            with pytest.raises(NotFoundError):
                self.index.find(owner, name)
        else:
            assert is_same(self.index.find(owner, name), kept)

    @precondition(lambda self: len(self.plain.kept) > 1)
    @rule(instance=INSTANCE)
    def end_instance(self, instance: str) -> None:
        for page in self.plain.handles[instance]:
            self.pool.release(page)
        self.plain.handles[instance] = []
        self.index.end_instance(instance)
        for key, kept in list(self.plain.kept.items()):
            if kept.instance == instance and not kept.is_persistent:
                del self.plain.kept[key]

    @precondition(lambda self: len(self.plain.kept) > 1)
    @rule(num_pages=st.integers(0, 4), seconds=SECONDS)
    def reclaim(self, num_pages: int, seconds: float) -> None:
        """Drop exports that nobody uses, until there is room."""
        self.pass_time(seconds)
        self.plain.expire(self.now)
        self.index.expire()
        places = {page: int(place) for page, place in enumerate(self.pool.physical)}
        idle = [k for k in self.plain.idle() if any(places[p] >= 0 for p in k.pages)]
        num_freed = 0
        while idle and num_freed < num_pages:
            dropped = idle.pop(0)
            del self.plain.kept[dropped.owner, dropped.name]
            owners = self.plain.owners()
            num_freed += sum(places[p] >= 0 and not owners[p] for p in dropped.pages)
        left = {page for kept in idle for page in kept.pages if places[page] >= 0}
        num_free = self.pool.num_free
        assert self.index.reclaim(num_pages) == len(left)
        assert self.pool.num_free == num_free + num_freed

    # ---- what must hold ---------------------------------------------------------------

    @invariant()
    def everybody_sees_what_is_there_and_meant_for_them(self) -> None:
        self.plain.expire(self.now)
        self.index.expire()
        assert len(self.index) == len(self.plain.kept)
        for (owner, name), kept in self.plain.kept.items():
            assert is_same(self.index.find(owner, name), kept)
        for owner in OWNERS:
            for export in self.index.list_for(owner, ""):
                assert self.plain.kept[export.owner, export.name].is_for(owner)
                name = self.index.name_for(owner, export)
                assert self.index.find(owner, name) is export, "listed, so found"

    @invariant()
    def every_page_is_free_or_held_as_often_as_it_should_be(self) -> None:
        self.pool.check()
        owners, pins = self.plain.owners(), Counter(self.plain.pins)
        held = {*owners, *pins}
        assert self.pool.num_virtual == len(held)
        for page in held:
            assert self.pool.num_owners(page) == owners[page]
            assert self.pool.num_pins(page) == pins[page]
        on_device = [page for page in held if self.pool.physical[page] >= 0]
        in_host = [page for page in held if page in self.pool.swapped]
        unwritten = [page for page in held if self.pool.physical[page] == UNBOUND]
        assert self.pool.num_free + len(on_device) == NUM_PAGES
        assert len(on_device) + len(in_host) + len(unwritten) == len(held)
        exported = [page for kept in self.plain.kept.values() for page in kept.pages]
        assert Counter(self.index.pages) == Counter(exported)

    def teardown(self) -> None:
        self.limits.stop()
        self.index.clear()
        for _, export in self.plain.coming:
            self.index.turn_down(export)
        for page in self.plain.pins:
            self.pool.unpin(np.array([page], np.int32))
        for page in [page for pages in self.plain.handles.values() for page in pages]:
            self.pool.release(page)
        assert self.pool.num_virtual == 0
        assert self.pool.num_free == NUM_PAGES


def export_of(kept: Kept) -> Export:
    return Export(
        owner=kept.owner,
        name=kept.name,
        pages=list(kept.pages),
        hidden=[None] * len(kept.pages),
        loss=kept.loss,
        num_lost=kept.num_lost,
        permission=kept.permission,
        is_persistent=kept.is_persistent,
        expires_at=kept.expires_at,
        metadata=kept.metadata,
        instance=kept.instance,
        used_at=kept.used_at,
    )


def is_same(export: Export, kept: Kept) -> bool:
    expected = export_of(kept)
    expected.num_imports = kept.num_imports
    return export == expected


TestExports = ExportMachine.TestCase
TestExports.settings = settings(max_examples=settings().max_examples // 2)
