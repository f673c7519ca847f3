"""The contents of pages on one replica, read so that another one can have a copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import trio

from pie_trio.control.commands import Command, Kind
from pie_trio.control.pages import UNBOUND
from pie_trio.control.tenants import Tenant
from pie_trio.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pie_trio.control.pages import PagePool
    from pie_trio.control.served_model import ServedModel

__all__ = ["PageContent", "read_contents"]

READ_BYTES = 32 << 20
"""At once: steps of the replica's own inferlets run in between."""


@dataclass(frozen=True, slots=True)
class PageContent:
    """One page, as it can be put anywhere.

    Attributes:
        positions: ``[page_size]`` int32: see :attr:`PagePool.positions`.
        filled: ``[page_size]`` bool: see :attr:`PagePool.filled`.
        data: ``[page_bytes]`` uint8, or None where nothing was ever written.
    """

    positions: NDArray[np.int32]
    filled: NDArray[np.bool_]
    data: NDArray[np.uint8] | None


async def read_contents(
    source: ServedModel, pages: Sequence[int], reader: str
) -> list[PageContent] | None:
    """Return what pages hold once the commands that write them have ended.

    Args:
        source: The replica that has them.
        pages: Virtual pages of it; the caller owns them, so that nobody writes to them any more
            but commands that are on their way.
        reader: Names who reads, for the trace.

    Returns:
        The contents, page by page; None where the replica has lost its engine, and them.

    Raises:
        EngineError: They cannot be read.
    """
    found, wanted = dict[int, "NDArray[np.uint8]"](), list[int]()
    tenant = Tenant(reader, 0, pages=lambda: wanted, on_read=found.__setitem__)
    try:
        await _wait_written(source, pages, tenant)
        size = max(1, READ_BYTES // max(1, source.info.page_bytes))
        for part in _parts(pages, size):
            wanted[:] = part
            await _wait_read(source, tenant)
    finally:
        wanted.clear()  # a reading that has not begun has nothing to do
    if not source.pool.lost.isdisjoint(pages):
        return None
    return [_content(source.pool, page, found) for page in pages]


async def _wait_written(
    source: ServedModel, pages: Sequence[int], tenant: Tenant
) -> None:
    """Wait for the commands on their way that write these pages.

    A command that reads them and that nobody wants comes after those, and is in no batch.
    """
    if not any(source.pool.num_pins(page) for page in pages):
        return
    written = trio.Event()
    command = Command(
        Kind.COPY,
        tenant,
        pages=np.array(pages, np.intp),
        writes=(),
        on_done=lambda _: written.set(),
        submitted_at=trio.current_time(),
    )
    command.is_withdrawn = True
    source.batcher.submit(command)
    await written.wait()


async def _wait_read(source: ServedModel, tenant: Tenant) -> None:
    """Wait until the tenant was told what its pages hold: between two steps."""
    read = trio.Event()
    source.batcher.suspend(tenant, read.set)
    await read.wait()


def _parts(pages: Sequence[int], size: int) -> list[Sequence[int]]:
    return [pages[first : first + size] for first in range(0, len(pages), size)]


def _content(
    pool: PagePool, page: int, found: dict[int, NDArray[np.uint8]]
) -> PageContent:
    """Put together what is known of a page.

    Raises:
        EngineError: It was not read.
    """
    data = found.get(page)
    if data is None and int(pool.physical[page]) != UNBOUND:
        raise EngineError(
            "the pages of an export could not be read on the replica that has them: the log "
            "says why, and another import tries again"
        )
    return PageContent(pool.positions[page].copy(), pool.filled[page].copy(), data)
