"""``allocate.wit``: KV pages and embeds under numbers that the guest chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pie_trio.application.host.in_flight import check_room, request_bytes, submit
from pie_trio.application.host.interface import HANDLES, fallible, interface
from pie_trio.application.wasm.values import U32, Unit
from pie_trio.control.commands import Kind
from pie_trio.control.embed_table import Embed
from pie_trio.engine_api import PageCopy
from pie_trio.errors import BadArgumentError

if TYPE_CHECKING:
    from pie_trio.application.host.session import Session

__all__ = ["INTERFACE"]


def alloc_kvpage(session: Session, queue: int, pages: list[int]) -> None:
    """Allocate a page under each of these unused numbers."""
    model, table = session.page_table(queue)
    table.check_unused(pages)
    for page in pages:
        table.add(page, model.pool.allocate())


def dealloc_kvpage(session: Session, queue: int, pages: list[int]) -> None:
    """Give pages back; commands already enqueued still see them."""
    model, table = session.page_table(queue)
    if len(set(pages)) != len(pages):
        raise BadArgumentError("the same page is named twice: give each back once")
    for page in pages:
        table.get(page)  # all or nothing
    for page in pages:
        model.pool.release(table.remove(page))
    model.batcher.poke()  # others may wait for pages


def fork_kvpage(
    session: Session, queue: int, sources: list[int], targets: list[int]
) -> None:
    """Let unused numbers share the contents of pages."""
    model, table = session.page_table(queue)
    if len(sources) != len(targets):
        raise BadArgumentError(
            f"each source needs a target: {len(sources)} sources, {len(targets)} targets"
        )
    shared = [table.get(source) for source in sources]
    table.check_unused(targets)
    for source, target, page in zip(sources, targets, shared, strict=True):
        model.pool.share(page)
        table.add(target, page)
        if source in table.hidden:
            table.hide(target, table.hidden[source])


def copy_kvpage(
    session: Session,
    queue: int,
    source: int,
    target: int,
    source_offset: int,
    target_offset: int,
    count: int,
) -> int:
    """Enqueue a copy of tokens between pages, and return its ticket."""
    model, table = session.page_table(queue)
    pool = model.pool
    old, into = table.get(source), table.get(target)
    for offset in (source_offset, target_offset):
        if not 0 < count <= pool.page_size - offset:
            raise BadArgumentError(
                f"{count} tokens from offset {offset} do not lie within a page of "
                f"{pool.page_size}"
            )
    num_bytes = request_bytes(4, 0)
    check_room(session, num_bytes)
    new = pool.make_writable(into)
    copies: list[PageCopy] = []
    if new != into:
        table.replace(target, new)
        copies.append(PageCopy(into, new, 0, 0, pool.page_size))
        old = new if source == target else old
    copies.append(PageCopy(old, new, source_offset, target_offset, count))
    moved = pool.positions[old, source_offset : source_offset + count].copy()
    pool.positions[new, target_offset : target_offset + count] = moved
    table.changes += 1
    pages = {page for copy in copies for page in (copy.source, copy.target)}
    return submit(
        session,
        session.queues.get(queue),
        Kind.COPY,
        writes=(new,),
        pages=np.array(sorted(pages), np.intp),
        copies=tuple(copies),
        num_bytes=num_bytes,
    )


def alloc_emb(session: Session, queue: int, embeds: list[int]) -> None:
    """Allocate an embed under each of these unused numbers."""
    _, table = session.embed_table(queue)
    table.check_unused(embeds)
    for embed in embeds:
        table.add(embed, Embed())


def dealloc_emb(session: Session, queue: int, embeds: list[int]) -> None:
    """Give embeds back; commands already enqueued still see them."""
    model, table = session.embed_table(queue)
    if len(set(embeds)) != len(embeds):
        raise BadArgumentError("the same embed is named twice: give each back once")
    for embed in embeds:
        table.get(embed)  # all or nothing
    for embed in embeds:
        slot = table.remove(embed).slot
        if slot >= 0:
            model.embeds.release(slot)


INTERFACE = interface(
    "allocate",
    {
        "alloc-kvpage": fallible(alloc_kvpage, Unit(), U32, HANDLES),
        "dealloc-kvpage": fallible(dealloc_kvpage, Unit(), U32, HANDLES),
        "copy-kvpage": fallible(copy_kvpage, U32, U32, U32, U32, U32, U32, U32),
        "alloc-emb": fallible(alloc_emb, Unit(), U32, HANDLES),
        "dealloc-emb": fallible(dealloc_emb, Unit(), U32, HANDLES),
        "fork-kvpage": fallible(fork_kvpage, Unit(), U32, HANDLES, HANDLES),
    },
)
