"""From a forward of a guest to a command: check it, make its pages writable, infer its mask."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pie_trio.control.masks import MAX_MASK_ENTRIES, decode_mask, infer_mask
from pie_trio.engine_api import ForwardRequest, ModelInfo, OutputSpec, PageCopy
from pie_trio.errors import (
    BadArgumentError,
    LimitError,
    OutOfPagesError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pie_trio.config import ControlConfig
    from pie_trio.control.page_table import PageTable
    from pie_trio.control.pages import PageIds, PagePool
    from pie_trio.engine_api import SamplerSpec

__all__ = ["ForwardPlan", "GuestForward", "check_outputs", "plan_forward"]


@dataclass(slots=True)
class GuestForward:
    """A forward as the guest asks for it; see ``forward.wit`` for the meaning of each field."""

    token_ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    pages: list[int]
    start: int
    mask: Sequence[Sequence[int]] | None = None
    outputs: tuple[OutputSpec, ...] = ()
    input_slots: NDArray[np.int32] | None = None
    adapter: str = ""


@dataclass(slots=True)
class ForwardPlan:
    """What becomes of it.

    Attributes:
        request: The engine's, with virtual pages.
        pages: ``[n]``, all virtual pages that it uses, sources of copies included.
        writes: Those that it writes.
        copies: To make before it, between virtual pages.
    """

    request: ForwardRequest
    pages: PageIds
    writes: list[int]
    copies: tuple[PageCopy, ...] = field(default=())


def plan_forward(
    wanted: GuestForward,
    table: PageTable,
    pool: PagePool,
    info: ModelInfo,
    config: ControlConfig,
    *,
    max_mask_entries: int = MAX_MASK_ENTRIES,
) -> ForwardPlan:
    """Check a forward and prepare its pages. All or nothing: a refused one changes nothing.

    Args:
        wanted: The guest's request.
        table: The guest's pages; a shared page that is written gets a copy under its handle.
        pool: The model's pages.
        info: The model.
        config: Limits.
        max_mask_entries: Room for its mask.

    Raises:
        BadArgumentError: A field has the wrong size or value.
        UnknownHandleError: A page is not the guest's.
        OutOfPagesError: The model has fewer pages than it needs.
        LimitError: Too many tokens, or too large a distribution or mask.
        UnsupportedError: The model lacks the adapter.
    """
    num_tokens, size = len(wanted.token_ids), pool.page_size
    _check_tokens(wanted, info, config)
    handles = wanted.pages
    pages = table.get_all(handles)
    if len(set(handles)) != len(handles):
        raise BadArgumentError(
            "the same page is named twice in one context: name each once"
        )
    kv_len = wanted.start + num_tokens
    if kv_len > len(pages) * size:
        raise BadArgumentError(
            f"slots {wanted.start} to {kv_len - 1} are written, but {len(pages)} pages have "
            f"only {len(pages) * size}: allocate and name more pages"
        )
    first, last = wanted.start // size, (kv_len - 1) // size
    if last >= pool.num_pages:
        raise OutOfPagesError(needed=last + 1, free=pool.num_free, total=pool.num_pages)
    page_ids = np.array(pages[: last + 1], np.intp)
    earlier = pool.positions[page_ids].reshape(-1)[: wanted.start]
    mask: NDArray[np.bool_] | None
    if wanted.mask is not None:
        mask = decode_mask(
            wanted.mask,
            num_tokens=num_tokens,
            kv_len=kv_len,
            max_entries=max_mask_entries,
        )
        _check_seen(mask, earlier)
    else:
        hidden = table.hidden_slots(handles[: last + 1]) if table.hidden else None
        mask = infer_mask(
            earlier, wanted.positions, hidden, max_entries=max_mask_entries
        )

    copies: list[PageCopy] = []
    for index in range(first, last + 1):
        old = pages[index]
        new = pool.make_writable(old)
        if new != old:
            table.replace(handles[index], new)
            pages[index] = page_ids[index] = new
            if (pool.positions[old] >= 0).any():
                copies.append(PageCopy(old, new, 0, 0, size))
    if pool.set_positions(page_ids, wanted.start, wanted.positions):
        table.changes += 1
    request = ForwardRequest(
        wanted.token_ids,
        wanted.positions,
        page_ids,
        kv_len,
        mask,
        wanted.outputs,
        wanted.input_slots,
        wanted.adapter,
    )
    used = page_ids
    # A page that stands under several handles is in one context once; a source of a copy may
    # be one of the others.
    if copies or len(set(pages)) != len(pages):
        sources = [copy.source for copy in copies]
        used = np.unique(np.array([*pages[: last + 1], *sources], np.intp))
    return ForwardPlan(request, used, pages[first : last + 1], tuple(copies))


def check_outputs(
    outputs: Sequence[OutputSpec], num_rows: int, info: ModelInfo, config: ControlConfig
) -> None:
    """Check what a forward or a projection is to return.

    Raises:
        BadArgumentError: A row or a value of a sampler is out of range.
        LimitError: A distribution is too large.
    """
    for spec in outputs:
        rows = spec.rows
        if len(rows) == 1:
            row = int(rows[0])
            if not 0 <= row < num_rows:
                raise BadArgumentError(
                    f"output {row} is not below {num_rows}, the number of tokens"
                )
        elif len(rows):
            _check_range("output", rows, num_rows, "the number of tokens")
            if (np.diff(rows) <= 0).any():
                raise BadArgumentError(
                    "the rows of an output ascend, and each is named once"
                )
        if spec.top_k:
            max_top_k = min(config.max_distribution, info.vocab_size)
            if spec.top_k > max_top_k:
                raise LimitError(
                    f"a distribution may have {max_top_k} entries, got {spec.top_k}"
                )
        if spec.sampler is not None:
            _check_sampler(spec.sampler)
            if spec.processor and len(rows) != 1:
                raise BadArgumentError(
                    f"an output with a processor has one row, got {len(rows)}: a processor "
                    "stands in one place of a sequence; fork it for others"
                )


def _check_tokens(wanted: GuestForward, info: ModelInfo, config: ControlConfig) -> None:
    num_tokens = len(wanted.token_ids)
    if num_tokens == 0:
        raise BadArgumentError("a forward needs at least one token")
    if num_tokens > config.max_forward_tokens:
        raise LimitError(
            f"a forward may have {config.max_forward_tokens} tokens, got {num_tokens}: "
            "split it into several"
        )
    if len(wanted.positions) != num_tokens:
        raise BadArgumentError(
            f"each token needs a position: {num_tokens} tokens, {len(wanted.positions)} positions"
        )
    _check_range("token", wanted.token_ids, info.vocab_size, "the model's vocabulary")
    _check_range("position", wanted.positions, 2**31 - 1, "the largest position")
    check_outputs(wanted.outputs, num_tokens, info, config)
    if wanted.adapter and wanted.adapter not in info.adapters:
        have = ", ".join(info.adapters) or "none"
        raise UnsupportedError(
            f"{info.name} has no adapter {wanted.adapter!r}: it has {have}"
        )


def _check_range(name: str, values: NDArray[np.int32], end: int, what: str) -> None:
    if len(values) == 1:
        low = high = int(values[0])
    else:
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
    if not 0 < sampler.typical_p <= 1:
        raise BadArgumentError(
            f"typical_p is above 0 and at most 1, got {sampler.typical_p}"
        )
    for name, value in (
        ("epsilon_cutoff", sampler.epsilon_cutoff),
        ("eta_cutoff", sampler.eta_cutoff),
        ("xtc_threshold", sampler.xtc_threshold),
        ("xtc_probability", sampler.xtc_probability),
    ):
        if not 0 <= value <= 1:
            raise BadArgumentError(f"{name} is between 0 and 1, got {value}")


def _check_seen(mask: NDArray[np.bool_], earlier: NDArray[np.int32]) -> None:
    """Raise if a token sees a slot that nobody wrote: it may hold what others left there."""
    seen = mask[:, : len(earlier)].any(axis=0)
    stale = np.flatnonzero(seen & (earlier < 0))
    if len(stale):
        raise BadArgumentError(
            f"the mask shows slot {stale[0]}, which was never written: hide it"
        )
