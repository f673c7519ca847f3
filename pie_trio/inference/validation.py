"""Checks a batch at the seam: what fails here is a bug of the control layer.

Without these checks a wrong page id would read or overwrite another inferlet's context. Shapes
are looked at request by request; values once, over the flat arrays of the whole batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pie_trio.errors import EngineError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pie_trio.engine_api import (
        Batch,
        ForwardRequest,
        ModelInfo,
        OutputSpec,
        PageCopy,
        SamplerSpec,
    )
    from pie_trio.inference.metadata import BatchMetadata

__all__ = ["check_shapes", "check_values"]


def check_shapes(batch: Batch, info: ModelInfo) -> None:
    """Check everything of a batch that :func:`build_metadata` relies on.

    Raises:
        EngineError: The message names the copy or the request and what is wrong with it.
    """
    for index, copy in enumerate(batch.copies):
        _check_copy(copy, info, f"copy {index} of the batch")
    for index, request in enumerate(batch.forwards):
        _check_request(request, info.page_size, f"request {index} of the batch")
        if request.outputs is not None:
            _check_outputs(
                request, request.outputs, info, f"request {index} of the batch"
            )


def check_values(metadata: BatchMetadata, info: ModelInfo) -> None:
    """Check every id and position of a batch, and that no two tokens share a slot.

    Raises:
        EngineError: The message names the request and the value.
    """
    token_indptr, page_indptr = metadata.qo_indptr, metadata.page_indptr
    _check_range("token id", metadata.token_ids, token_indptr, info.vocab_size)
    _check_range("position", metadata.positions, token_indptr, None)
    _check_range("page id", metadata.page_ids, page_indptr, info.num_pages)
    slots = np.sort(metadata.write_slots)
    repeated = slots[1:][slots[1:] == slots[:-1]]
    if repeated.size:
        page, offset = divmod(int(repeated[0]), metadata.page_size)
        raise EngineError(
            f"two new tokens of the batch are written to page {page}, offset {offset}: "
            "a page that is written may belong to one context only"
        )


def _check_range(
    what: str, values: NDArray[np.int32], indptr: NDArray[np.int32], limit: int | None
) -> None:
    if not values.size:
        return
    if values.min() >= 0 and (limit is None or values.max() < limit):
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


def _check_request(request: ForwardRequest, page_size: int, where: str) -> None:
    _check_vector(request.token_ids, f"{where}: token_ids")
    _check_vector(request.positions, f"{where}: positions")
    _check_vector(request.page_ids, f"{where}: page_ids")
    num_tokens, kv_len = len(request.token_ids), request.kv_len
    if num_tokens < 1:
        raise EngineError(
            f"{where}: expected at least one new token, but there is none"
        )
    if len(request.positions) != num_tokens:
        raise EngineError(
            f"{where}: {num_tokens} token_ids need as many positions, but there are "
            f"{len(request.positions)}"
        )
    if kv_len < num_tokens:
        raise EngineError(
            f"{where}: kv_len should count the {num_tokens} new tokens too, but is {kv_len}"
        )
    if kv_len > len(request.page_ids) * page_size:
        raise EngineError(
            f"{where}: kv_len {kv_len} does not fit in {len(request.page_ids)} pages of "
            f"{page_size} tokens"
        )
    if request.mask is not None:
        _check_mask(request.mask, (num_tokens, kv_len), where)


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


def _check_outputs(
    request: ForwardRequest, outputs: OutputSpec, info: ModelInfo, where: str
) -> None:
    _check_vector(outputs.rows, f"{where}: output rows")
    num_tokens = len(request.token_ids)
    for row in outputs.rows.tolist():
        if not 0 <= row < num_tokens:
            raise EngineError(
                f"{where}: an output row should be in [0, {num_tokens}), but one is {row}"
            )
    if not 0 <= outputs.top_k <= info.vocab_size:
        raise EngineError(
            f"{where}: top_k of the outputs should be in [0, {info.vocab_size}], but it "
            f"is {outputs.top_k}"
        )
    if outputs.sampler is not None:
        _check_sampler(outputs.sampler, where)


def _check_sampler(sampler: SamplerSpec, where: str) -> None:
    # Written so that NaN fails every comparison.
    is_valid_by_field = {
        "temperature": 0.0 <= sampler.temperature < float("inf"),
        "top_k": sampler.top_k >= 0,
        "top_p": 0.0 <= sampler.top_p <= 1.0,
        "min_p": 0.0 <= sampler.min_p <= 1.0,
    }
    for field, is_valid in is_valid_by_field.items():
        if not is_valid:
            value = getattr(sampler, field)
            raise EngineError(f"{where}: the sampler's {field} cannot be {value}")


def _check_vector(array: NDArray[Any], what: str) -> None:
    if array.ndim != 1 or array.dtype != np.int32:
        raise EngineError(
            f"{what} should be a vector of int32, but it is {array.dtype} "
            f"{list(array.shape)}"
        )
