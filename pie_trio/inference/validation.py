"""Checks a batch at the seam: what fails here is a bug of the control layer.

Without these checks a wrong page id would read or overwrite another inferlet's context. Shapes
are looked at request by request; values once, over the flat arrays of the whole batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pie_trio.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pie_trio.engine_api import (
        Batch,
        ForwardRequest,
        ModelInfo,
        OutputSpec,
        PageCopy,
        ProjectRequest,
        SamplerSpec,
    )
    from pie_trio.inference.metadata import BatchMetadata
    from pie_trio.inference.outputs import OutputPlan

__all__ = ["check_page_data", "check_page_ids", "check_shapes", "check_values"]

_INT32 = np.dtype(np.int32)
_INFINITY = float("inf")
_FEW = 16  # with fewer numbers, lists are faster than numpy


def check_shapes(batch: Batch, info: ModelInfo) -> None:
    """Check everything of a batch that the flat arrays rely on.

    Raises:
        EngineError: The message names the copy or the request and what is wrong with it.
    """
    for index, copy in enumerate(batch.copies):
        _check_copy(copy, info, f"copy {index} of the batch")
    page_size, vocab_size = info.page_size, info.vocab_size
    for index, request in enumerate(batch.forwards):
        # The usual request is right, which is seen fast; the slow way finds what is wrong.
        if not _is_plain(request, page_size):
            _check_request(request, info, f"request {index} of the batch")
        for output in request.outputs:
            if not _is_valid(output, vocab_size):
                _check_output(output, vocab_size, f"request {index} of the batch")
    for index, projection in enumerate(batch.projections):
        where = f"projection {index} of the batch"
        _check_projection(projection, where)
        for output in projection.outputs:
            _check_output(output, vocab_size, where)


def check_values(metadata: BatchMetadata, plan: OutputPlan, info: ModelInfo) -> None:
    """Check every id, position, row and slot of a batch, and that no two writes collide.

    Raises:
        EngineError: The message names the request and the value.
    """
    token_indptr, page_indptr = metadata.qo_indptr, metadata.page_indptr
    _check_range("token id", metadata.token_ids, token_indptr, info.vocab_size)
    _check_range("position", metadata.positions, token_indptr, None)
    _check_range("page id", metadata.page_ids, page_indptr, info.num_pages)
    _check_output_rows(plan)
    _check_write_slots(metadata)
    if plan.store_slots.size or metadata.embed_slots.size or plan.project_slots.size:
        _check_embeds(metadata, plan, info.num_embeds)


def check_page_ids(page_ids: NDArray[np.int32], info: ModelInfo) -> None:
    """Check the pages that are to be read.

    Raises:
        EngineError: They are no vector of page ids.
    """
    _check_vector(page_ids, "page_ids")
    bad = page_ids[(page_ids < 0) | (page_ids >= info.num_pages)]
    if bad.size:
        raise EngineError(
            f"a page id should be in [0, {info.num_pages}), but one is {bad[0]}"
        )


def check_page_data(
    page_ids: NDArray[np.int32], data: NDArray[np.uint8], info: ModelInfo
) -> None:
    """Check the pages that are to be written, and what with.

    Raises:
        EngineError: A page id is impossible or occurs twice, or the data have another shape.
    """
    check_page_ids(page_ids, info)
    pages, counts = np.unique(page_ids, return_counts=True)
    if (counts > 1).any():
        raise EngineError(
            f"page {pages[counts > 1][0]} occurs twice: which data it would hold is undefined"
        )
    shape = (len(page_ids), info.page_bytes)
    if data.shape != shape or data.dtype != np.uint8:
        raise EngineError(
            f"the data of the pages should be uint8 {list(shape)}, but they are "
            f"{data.dtype} {list(data.shape)}"
        )


def _is_plain(request: ForwardRequest, page_size: int) -> bool:
    token_ids, positions = request.token_ids, request.positions
    page_ids = request.page_ids
    return (
        token_ids.dtype is positions.dtype is page_ids.dtype is _INT32
        and token_ids.ndim == page_ids.ndim == 1
        and positions.shape == token_ids.shape
        and 0 < token_ids.size <= request.kv_len <= page_ids.size * page_size
        and request.mask is None
        and request.input_slots is None
        and not request.adapter
    )


def _is_valid(output: OutputSpec, vocab_size: int) -> bool:
    rows, sampler = output.rows, output.sampler
    return (
        rows.dtype is _INT32
        and rows.ndim == 1
        and 0 <= output.top_k <= vocab_size
        and output.store is None
        and not output.processor
        and (
            sampler is None
            or (
                0.0 <= sampler.temperature < _INFINITY
                and sampler.top_k >= 0
                and 0.0 <= sampler.top_p <= 1.0
                and 0.0 <= sampler.min_p <= 1.0
                and 0.0 <= sampler.typical_p <= 1.0
                and 0.0 <= sampler.epsilon_cutoff <= 1.0
                and 0.0 <= sampler.eta_cutoff <= 1.0
                and 0.0 <= sampler.xtc_threshold <= 1.0
                and 0.0 <= sampler.xtc_probability <= 1.0
            )
        )
    )


def _check_range(
    what: str, values: NDArray[np.int32], indptr: NDArray[np.int32], limit: int | None
) -> None:
    if not values.size or _is_within(values, limit):
        return
    is_bad = values < 0
    if limit is not None:
        is_bad |= values >= limit
    place = int(np.flatnonzero(is_bad)[0])
    request = int(np.searchsorted(indptr, place, side="right")) - 1
    expected = "0 or more" if limit is None else f"in [0, {limit})"
    raise EngineError(
        f"request {request} of the batch: a {what} should be {expected}, but one is "
        f"{values[place]}"
    )


def _is_within(values: NDArray[np.int32], limit: int | None) -> bool:
    if len(values) <= _FEW:
        few = values.tolist()
        return min(few) >= 0 and (limit is None or max(few) < limit)
    # Seen as unsigned, a negative number is larger than every limit.
    return int(values.view(np.uint32).max()) < (2**31 if limit is None else limit)


def _check_output_rows(plan: OutputPlan) -> None:
    rows, limits = plan.own_rows, plan.row_limits
    if (rows.view(np.uint32) < limits.view(np.uint32)).all():
        return
    place = int(np.flatnonzero((rows < 0) | (rows >= limits))[0])
    raise EngineError(
        f"{plan.name_of_request(place)}: an output row should be in "
        f"[0, {limits[place]}), but one is {rows[place]}"
    )


def _check_write_slots(metadata: BatchMetadata) -> None:
    if len(metadata.write_slots) < 2:
        return
    slots = metadata.write_slots.copy()
    slots.sort()
    is_repeated = slots[1:] == slots[:-1]
    if is_repeated.any():
        repeated = slots[1:][is_repeated]
        page, offset = divmod(int(repeated[0]), metadata.page_size)
        raise EngineError(
            f"two new tokens of the batch are written to page {page}, offset {offset}: "
            "a page that is written may belong to one context only"
        )


def _check_embeds(metadata: BatchMetadata, plan: OutputPlan, num_embeds: int) -> None:
    read = np.concatenate((metadata.embed_slots, plan.project_slots))
    for what, slots in (
        ("stored", plan.store_slots),
        ("input", metadata.embed_slots),
        ("projected", plan.project_slots),
    ):
        bad = slots[(slots < 0) | (slots >= num_embeds)]
        if bad.size:
            raise EngineError(
                f"a slot of a {what} hidden state should be in [0, {num_embeds}), but one "
                f"of the batch is {bad[0]}"
            )
    stored, counts = np.unique(plan.store_slots, return_counts=True)
    if (counts > 1).any():
        raise EngineError(
            f"two rows of the batch are stored in slot {stored[counts > 1][0]}: "
            "each needs a slot of its own"
        )
    both = np.intersect1d(stored, read)
    if both.size:
        raise EngineError(
            f"slot {both[0]} is both stored and read in the batch: read it in a later one"
        )


def _check_copy(copy: PageCopy, info: ModelInfo, where: str) -> None:
    for page in (copy.source, copy.target):
        if not 0 <= page < info.num_pages:
            raise EngineError(
                f"{where}: a page id should be in [0, {info.num_pages}), but one is {page}"
            )
    for offset in (copy.source_offset, copy.target_offset):
        if copy.count < 1 or offset < 0 or offset + copy.count > info.page_size:
            raise EngineError(
                f"{where}: {copy.count} tokens from offset {offset} do not lie within one "
                f"page of {info.page_size}"
            )


def _check_request(request: ForwardRequest, info: ModelInfo, where: str) -> None:
    _check_vector(request.token_ids, f"{where}: token_ids")
    _check_vector(request.positions, f"{where}: positions")
    _check_vector(request.page_ids, f"{where}: page_ids")
    num_tokens, kv_len = len(request.token_ids), request.kv_len
    if num_tokens < 1:
        raise EngineError(
            f"{where}: expected at least one new token, but there is none"
        )
    _check_length(request.positions, num_tokens, "token_ids", "positions", where)
    if kv_len < num_tokens:
        raise EngineError(
            f"{where}: kv_len should count the {num_tokens} new tokens too, but is {kv_len}"
        )
    if kv_len > len(request.page_ids) * info.page_size:
        raise EngineError(
            f"{where}: kv_len {kv_len} does not fit in {len(request.page_ids)} pages of "
            f"{info.page_size} tokens"
        )
    if request.mask is not None:
        _check_mask(request.mask, (num_tokens, kv_len), where)
    if request.input_slots is not None:
        _check_vector(request.input_slots, f"{where}: input_slots")
        _check_length(
            request.input_slots, num_tokens, "token_ids", "input_slots", where
        )


def _check_mask(mask: NDArray[np.bool_], shape: tuple[int, int], where: str) -> None:
    if mask.shape != shape or mask.dtype != np.bool_:
        raise EngineError(
            f"{where}: the mask should be bool {list(shape)}, but it is {mask.dtype} "
            f"{list(mask.shape)}"
        )
    if not mask.any(axis=1).all():
        row = int(np.argmin(mask.any(axis=1)))
        raise EngineError(
            f"{where}: row {row} of the mask attends to nothing: each row needs one slot"
        )


def _check_projection(projection: ProjectRequest, where: str) -> None:
    _check_vector(projection.slots, f"{where}: slots")
    _check_vector(projection.positions, f"{where}: positions")
    _check_length(
        projection.positions, len(projection.slots), "slots", "positions", where
    )
    if (projection.positions < 0).any():
        raise EngineError(
            f"{where}: a position should be 0 or more, but one is "
            f"{projection.positions.min()}"
        )


def _check_output(output: OutputSpec, vocab_size: int, where: str) -> None:
    _check_vector(output.rows, f"{where}: output rows")
    if not 0 <= output.top_k <= vocab_size:
        raise EngineError(
            f"{where}: top_k of the outputs should be in [0, {vocab_size}], but it "
            f"is {output.top_k}"
        )
    if output.sampler is not None:
        _check_sampler(output.sampler, where)
    if output.store is not None:
        _check_vector(output.store, f"{where}: store")
        _check_length(output.store, len(output.rows), "rows", "store", where)
    if output.processor and (output.sampler is None or len(output.rows) != 1):
        raise EngineError(
            f"{where}: an output with processor {output.processor} needs a sampler and one "
            f"row, but has {'no' if output.sampler is None else 'a'} sampler and "
            f"{len(output.rows)} rows"
        )


def _check_sampler(sampler: SamplerSpec, where: str) -> None:
    # Written so that NaN fails every comparison.
    is_valid_by_field = {
        "temperature": 0.0 <= sampler.temperature < _INFINITY,
        "top_k": sampler.top_k >= 0,
        "top_p": 0.0 <= sampler.top_p <= 1.0,
        "min_p": 0.0 <= sampler.min_p <= 1.0,
        "typical_p": 0.0 <= sampler.typical_p <= 1.0,
        "epsilon_cutoff": 0.0 <= sampler.epsilon_cutoff <= 1.0,
        "eta_cutoff": 0.0 <= sampler.eta_cutoff <= 1.0,
        "xtc_threshold": 0.0 <= sampler.xtc_threshold <= 1.0,
        "xtc_probability": 0.0 <= sampler.xtc_probability <= 1.0,
    }
    for field, is_valid in is_valid_by_field.items():
        if not is_valid:
            value = getattr(sampler, field)
            raise EngineError(f"{where}: the sampler's {field} cannot be {value}")


def _check_length(
    array: Sequence[object] | NDArray[Any], length: int, of: str, what: str, where: str
) -> None:
    if len(array) != length:
        raise EngineError(
            f"{where}: {length} {of} need as many {what}, but there are {len(array)}"
        )


def _check_vector(array: NDArray[Any], what: str) -> None:
    if array.ndim != 1 or array.dtype != np.int32:
        raise EngineError(
            f"{what} should be a vector of int32, but it is {array.dtype} "
            f"{list(array.shape)}"
        )
