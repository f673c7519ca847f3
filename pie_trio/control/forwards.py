"""From a forward of a guest to a command: check it, make its pages writable, infer its mask."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pie_trio.control.masks import decode_mask, infer_mask
from pie_trio.control.pages import NO_PAGE, PagePool
from pie_trio.engine_api import (
    ForwardRequest,
    ModelInfo,
    OutputSpec,
    PageCopy,
    SamplerSpec,
)
from pie_trio.errors import BadArgumentError, LimitError, OutOfPagesError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pie_trio.config import ControlConfig
    from pie_trio.control.handles import HandleTable

__all__ = ["ForwardPlan", "GuestForward", "plan_forward"]


@dataclass(frozen=True, slots=True)
class GuestForward:
    """A forward as the guest asks for it; see ``forward.wit`` for the meaning of each field."""

    token_ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    pages: list[int]
    start: int
    mask: list[list[int]] | None
    outputs: NDArray[np.int32]
    sampler: SamplerSpec | None
    top_k: int


@dataclass(frozen=True, slots=True)
class ForwardPlan:
    """What becomes of it: the engine's request and the physical pages that it touches."""

    request: ForwardRequest
    copies: tuple[PageCopy, ...]
    reads: frozenset[int]
    writes: frozenset[int]


def plan_forward(
    wanted: GuestForward,
    table: HandleTable[int],
    pool: PagePool,
    info: ModelInfo,
    config: ControlConfig,
) -> ForwardPlan:
    """Check a forward and prepare its pages. All or nothing: a refused one changes nothing.

    Args:
        wanted: The guest's request.
        table: The guest's pages; a shared page that is written gets a copy under its handle.
        pool: The model's pages.
        info: The model.
        config: Limits.

    Raises:
        BadArgumentError: A field has the wrong size or value.
        UnknownHandleError: A page is not the guest's.
        OutOfPagesError: A page to write is shared, or was never there, and none is free.
        LimitError: Too many tokens or too large a distribution.
    """
    num_tokens = len(wanted.token_ids)
    _check_tokens(wanted, info, config)
    pages = [table.get(handle) for handle in wanted.pages]
    if len(set(wanted.pages)) != len(pages):
        raise BadArgumentError(
            "the same page is named twice in one context: name each once"
        )
    kv_len = wanted.start + num_tokens
    if kv_len > len(pages) * pool.page_size:
        raise BadArgumentError(
            f"slots {wanted.start} to {kv_len - 1} are written, but {len(pages)} pages have only "
            f"{len(pages) * pool.page_size}: allocate and name more pages"
        )
    first, last = wanted.start // pool.page_size, (kv_len - 1) // pool.page_size
    _check_pages(pages, range(first, last + 1), pool)
    explicit_mask = None
    if wanted.mask is not None:
        explicit_mask = decode_mask(wanted.mask, num_tokens=num_tokens, kv_len=kv_len)
        earlier = pool.positions[pages[: last + 1]].reshape(-1)[: wanted.start]
        _check_seen(explicit_mask, earlier)

    copies: list[PageCopy] = []
    for index in range(first, last + 1):
        old = pages[index]
        new = pool.make_writable(old)
        if new != old:
            table.replace(wanted.pages[index], new)
            pages[index] = new
            copies.append(PageCopy(old, new, 0, 0, pool.page_size))
    page_ids = np.array(pages[: last + 1], np.int32)
    slots = page_ids[first:, None] * pool.page_size + np.arange(pool.page_size)
    offset = wanted.start - first * pool.page_size
    flat = pool.positions.reshape(-1)
    flat[slots.reshape(-1)[offset : offset + num_tokens]] = wanted.positions
    mask = explicit_mask
    if mask is None:
        mask = infer_mask(
            pool.positions[page_ids].reshape(-1)[:kv_len], wanted.positions
        )
    request = ForwardRequest(
        token_ids=wanted.token_ids,
        positions=wanted.positions,
        page_ids=page_ids,
        kv_len=kv_len,
        mask=mask,
        outputs=_outputs(wanted),
    )
    writes = frozenset(pages[first : last + 1])
    reads = frozenset(pages[:first]) | {copy.source for copy in copies} | writes
    return ForwardPlan(request, tuple(copies), reads, writes)


def _outputs(wanted: GuestForward) -> OutputSpec | None:
    if len(wanted.outputs) == 0 or (wanted.sampler is None and wanted.top_k == 0):
        return None
    return OutputSpec(rows=wanted.outputs, sampler=wanted.sampler, top_k=wanted.top_k)


def _check_tokens(wanted: GuestForward, info: ModelInfo, config: ControlConfig) -> None:
    num_tokens = len(wanted.token_ids)
    if num_tokens == 0:
        raise BadArgumentError("a forward needs at least one token")
    if num_tokens > config.max_batch_tokens:
        raise LimitError(
            f"a forward may have {config.max_batch_tokens} tokens, got {num_tokens}: "
            "split it into several"
        )
    if len(wanted.positions) != num_tokens:
        raise BadArgumentError(
            f"each token needs a position: {num_tokens} tokens, {len(wanted.positions)} positions"
        )
    _check_range("token", wanted.token_ids, info.vocab_size, "the model's vocabulary")
    _check_range("position", wanted.positions, 2**31 - 1, "the largest position")
    if len(wanted.outputs):
        _check_range("output", wanted.outputs, num_tokens, "the number of tokens")
    if len(wanted.outputs) > num_tokens:
        raise BadArgumentError(
            f"{len(wanted.outputs)} outputs of {num_tokens} tokens: name each token once"
        )
    max_top_k = min(config.max_distribution, info.vocab_size)
    if wanted.top_k > max_top_k:
        raise LimitError(
            f"a distribution may have {max_top_k} entries, got {wanted.top_k}"
        )
    if wanted.sampler is not None:
        _check_sampler(wanted.sampler)


def _check_range(name: str, values: NDArray[np.int32], end: int, what: str) -> None:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= end:
        raise BadArgumentError(
            f"{name} {low if low < 0 else high} is not below {end}, {what}"
        )


def _check_sampler(sampler: SamplerSpec) -> None:
    if not 0 <= sampler.temperature <= 1e6:
        raise BadArgumentError(f"temperature is 0 or more, got {sampler.temperature}")
    if not 0 < sampler.top_p <= 1:
        raise BadArgumentError(f"top_p is above 0 and at most 1, got {sampler.top_p}")
    if not 0 <= sampler.min_p <= 1:
        raise BadArgumentError(f"min_p is between 0 and 1, got {sampler.min_p}")


def _check_pages(pages: Sequence[int], written: range, pool: PagePool) -> None:
    """Raise unless all pages are there and those to be written can be made writable."""
    missing = sum(page == NO_PAGE for page in pages)
    # Of a page that stands in several places, the last owner writes in place.
    counts = Counter(pages[i] for i in written if pages[i] != NO_PAGE)
    shared = sum(min(n, pool.num_owners(page) - 1) for page, n in counts.items())
    if missing or shared > pool.num_free:
        raise OutOfPagesError(
            needed=missing or shared, free=pool.num_free, total=pool.num_pages
        )


def _check_seen(mask: NDArray[np.bool_], earlier: NDArray[np.int32]) -> None:
    """Raise if a token sees a slot that nobody wrote: it may hold what others left there."""
    seen = mask[:, : len(earlier)].any(axis=0)
    stale = np.flatnonzero(seen & (earlier < 0))
    if len(stale):
        raise BadArgumentError(
            f"the mask shows slot {stale[0]}, which was never written: hide it"
        )
