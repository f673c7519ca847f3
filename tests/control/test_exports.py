"""Single cases of exports; :mod:`tests.control.test_exports_machine` looks for more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pie_trio.control import export_limits
from pie_trio.control.exports import Export, ExportIndex, Permission
from pie_trio.control.pages import PagePool

if TYPE_CHECKING:
    import pytest


def make_export(
    pages: list[int],
    name: str,
    *,
    owner: str = "ann",
    permission: Permission | None = None,
    expires_at: float | None = None,
) -> Export:
    return Export(
        owner=owner,
        name=name,
        pages=pages,
        hidden=[None] * len(pages),
        permission=permission or Permission(),
        is_persistent=True,
        expires_at=expires_at,
        metadata=b"",
        instance="ann-1",
        used_at=0.0,
    )


def test_exports_whose_time_is_over_do_not_count_towards_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export_limits, "MAX_EXPORTS_OF_OWNER", 1)
    pool, now = PagePool(num_pages=1, page_size=2), 0.0
    index = ExportIndex(pool, lambda: now)
    page = pool.allocate()
    index.add(make_export([page], "old", expires_at=1.0))
    now = 1.0
    index.add(make_export([page], "new"))
    assert [export.name for export in index.list_for("ann", "")] == ["new"]
    assert pool.num_owners(page) == 2


def test_an_export_that_another_one_hides_is_not_listed() -> None:
    pool = PagePool(num_pages=1, page_size=2)
    index = ExportIndex(pool, lambda: 0.0)
    page = pool.allocate()
    index.add(
        make_export([page], "x", owner="bob", permission=Permission(is_published=True))
    )
    index.add(make_export([page], "bob/x"))
    assert [export.owner for export in index.list_for("ann", "")] == ["ann"]
    assert index.find("ann", "bob/x").owner == "ann"
    assert [export.owner for export in index.list_for("cid", "")] == ["bob"]


def test_an_export_that_shares_a_page_with_one_in_use_is_not_dropped_in_vain() -> None:
    pool = PagePool(num_pages=2, page_size=2)
    index = ExportIndex(pool, lambda: 0.0)
    shared, used = pool.allocate(), pool.allocate()
    pool.bind(np.array([shared, used]))
    index.add(make_export([shared], "short"))
    index.add(make_export([shared, used], "long"))
    pool.release(shared)
    assert index.reclaim(1) == 0, "a handle keeps the longer one"
    assert len(index) == 2
    pool.release(used)
    assert index.reclaim(2) == 0
    assert (len(index), pool.num_free) == (0, 2)


def test_an_owner_with_too_many_loses_those_that_nobody_has_used_for_longest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prefixes that programs share are exported for ever, and new ones are worth more."""
    monkeypatch.setattr(export_limits, "MAX_EXPORTS_OF_OWNER", 16)
    pool, now = PagePool(num_pages=64, page_size=2), 0.0
    index = ExportIndex(pool, lambda: now)
    for number in range(16):
        page = pool.allocate()
        export = make_export([page], f"{number:02d}")
        export.used_at = float(number)
        index.add(export)
        if number != 3:
            pool.release(page)  # somebody still has a handle of the fourth
    now = 99.0
    index.take("ann", "00", 1)  # and one that is used no longer counts as old
    for page in index.find("ann", "00").pages:
        pool.release(page)
    index.add(make_export([pool.allocate()], "new"))
    names = [export.name for export in index.list_for("ann", "")]
    assert names == ["00", *(f"{n:02d}" for n in range(3, 16)), "new"]
    other = make_export([pool.allocate()], "x", owner="bob")
    index.add(other)
    assert len(index.list_for("ann", "")) == 15, "others do not pay for it"


def test_exports_that_were_replaced_are_not_kept_until_their_time_is_over() -> None:
    pool = PagePool(num_pages=1, page_size=2)
    index = ExportIndex(pool, lambda: 0.0)
    page = pool.allocate()
    for _ in range(1000):
        index.add(make_export([page], "again", expires_at=1e9))
    assert len(index._ends) < 10
    index.clear()
    assert pool.num_owners(page) == 1
