"""The calls of ``exports.wit`` for prefixes: pages that are found by what they hold."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio

from pie_trio.application.waiting import Waiting
from pie_trio.control.export_limits import check_export
from pie_trio.control.exported import CACHE_PREFIX
from pie_trio.control.exports import Export, Permission
from pie_trio.errors import (
    BadArgumentError,
    EngineError,
    InferletError,
    NotFoundError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pie_trio.application.host.session import Session
    from pie_trio.control.page_table import PageTable
    from pie_trio.control.served_model import ServedModel

__all__ = ["import_prefix", "offer_prefix"]


def offer_prefix(
    session: Session, queue: int, pages: list[int], names: list[str]
) -> None:
    """Export pages of a prefix as soon as they are written."""
    model, table = session.page_table(queue)
    _check_prefix(names, pages)
    offers: list[tuple[int, Export]] = []
    for handle, name in zip(pages, names, strict=True):
        export = Export(
            owner=session.launch.owner,
            name=name,
            pages=[table.get(handle)],
            hidden=[table.hidden.get(handle)],
            permission=Permission(),
            is_persistent=True,
            expires_at=None,
            metadata=b"",
            instance=session.launch.instance_id,
            used_at=trio.current_time(),
        )
        check_export(export)
        offers.append((handle, export))
    for handle, export in offers:
        add = partial(_add_written, model, table, handle, export)
        model.batcher.when_written(export.pages[0], add)


def _add_written(
    model: ServedModel, table: PageTable, handle: int, export: Export
) -> None:
    """Add an export of a page that was just written, if it still is what was offered."""
    (page,) = export.pages
    if table.holds(handle, page) and model.pool.filled[page].all():
        export.used_at = trio.current_time()
        model.shared_exports.add_to_cache(export)


def import_prefix(
    session: Session, queue: int, names: list[str], pages: list[int]
) -> int | Waiting:
    """Let unused numbers stand for the pages of a prefix, as far as they are exported."""
    model, table = session.page_table(queue)
    _check_prefix(names, pages)
    for handle in pages:
        if handle in table:
            table.check_unused([handle])  # which says what is wrong
    shared, owner = model.shared_exports, session.launch.owner

    def take(count: int) -> tuple[Export, list[int]] | None:
        shared.find_own(owner, names[count])  # no other's, whose name may look alike
        return shared.take(owner, names[count], 1)

    def add(count: int, taken: tuple[Export, list[int]]) -> bool:
        export, (page,) = taken
        try:
            table.check_unused([pages[count]])
        except InferletError:  # there is no room, or it was taken meanwhile
            model.pool.release(page)
            return False
        table.add(pages[count], page)
        if (hidden := export.hidden[0]) is not None:
            table.hide(pages[count], hidden)
        return True

    def add_here(first: int) -> tuple[int, bool]:
        """Add what is on this replica; say how many there are, and whether that is the end."""
        for count in range(first, len(names)):
            try:
                taken = take(count)
            except (NotFoundError, BadArgumentError):  # or it has several pages
                return count, True
            if taken is None:
                return count, False
            if not add(count, taken):
                return count, True
        return len(names), True

    async def bring(count: int) -> int:
        """Go on where an export of another replica has to be copied."""
        has_ended = False
        while not has_ended:
            try:
                brought = await shared.bring(owner, names[count], 1)
            except (NotFoundError, EngineError):  # whoever misses it computes it
                return count
            if brought is not None:
                if not add(count, brought):
                    return count
                count += 1
            count, has_ended = add_here(count)
        return count

    count, has_ended = add_here(0)
    return count if has_ended else Waiting(partial(bring, count))


def _check_prefix(names: Sequence[str], pages: Sequence[int]) -> None:
    if len(names) != len(pages):
        raise BadArgumentError(f"{len(names)} names, but {len(pages)} numbers of pages")
    if len(set(pages)) < len(pages):
        raise BadArgumentError(
            "the same page is named twice: give each a name of its own"
        )
    for name in names:
        if not name.startswith(CACHE_PREFIX):
            raise BadArgumentError(
                f"names of pages of a prefix begin with {CACHE_PREFIX!r}, got {name!r}"
            )
