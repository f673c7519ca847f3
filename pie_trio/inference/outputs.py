"""From the logits of a batch's output rows to a result for each request; numpy only."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from pie_trio.engine_api import ForwardResult
from pie_trio.errors import EngineError
from pie_trio.inference.sampler import sample, take_rows, top_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pie_trio.engine_api import Batch, OutputSpec
    from pie_trio.inference.metadata import BatchMetadata

__all__ = ["make_results"]

_NO_TOKENS = np.empty(0, np.int32)
_NO_TOP_IDS = np.empty((0, 0), np.int32)
_NO_TOP_PROBS = np.empty((0, 0), np.float32)


def make_results(
    batch: Batch, metadata: BatchMetadata, logits: NDArray[np.float32]
) -> list[ForwardResult]:
    """Sample and rank all output rows of a batch at once, and hand them out by request.

    Args:
        batch: What was asked for.
        metadata: Of the same batch.
        logits: ``[num_rows, vocab_size]`` float32, in the order of ``metadata.output_rows``.

    Raises:
        EngineError: A logit is NaN or infinite.
    """
    _check_finite(logits, metadata)
    outputs = [forward.outputs for forward in batch.forwards]
    bounds = metadata.output_indptr.tolist()
    rows = [range(start, stop) for start, stop in pairwise(bounds)]
    token_ids = _sample_rows(outputs, rows, metadata, logits)
    top_ids, top_probs = _rank_rows(outputs, rows, logits)
    results: list[ForwardResult] = []
    for spec, span in zip(outputs, rows, strict=True):
        own = slice(span.start, span.stop)
        num_rows, top_k = len(span), 0 if spec is None else spec.top_k
        has_tokens = spec is not None and spec.sampler is not None
        results.append(
            ForwardResult(
                token_ids=token_ids[own] if has_tokens else _NO_TOKENS,
                top_ids=top_ids[own, :top_k] if top_k and num_rows else _NO_TOP_IDS,
                top_probs=top_probs[own, :top_k]
                if top_k and num_rows
                else _NO_TOP_PROBS,
            )
        )
    return results


def _sample_rows(
    outputs: Sequence[OutputSpec | None],
    spans: Sequence[range],
    metadata: BatchMetadata,
    logits: NDArray[np.float32],
) -> NDArray[np.int32]:
    """Return ``[num_rows]`` int32; rows without a sampler hold -1."""
    token_ids = np.full(len(logits), -1, np.int32)
    samplers = [
        (row, spec.sampler)
        for spec, span in zip(outputs, spans, strict=True)
        if spec is not None and spec.sampler is not None
        for row in span
    ]
    if samplers:
        rows = [row for row, _ in samplers]
        positions = metadata.positions[metadata.output_rows[rows]]
        token_ids[rows] = sample(
            take_rows(logits, rows), [spec for _, spec in samplers], positions
        )
    return token_ids


def _rank_rows(
    outputs: Sequence[OutputSpec | None],
    spans: Sequence[range],
    logits: NDArray[np.float32],
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return ids and probabilities ``[num_rows, largest top_k]``; other rows hold -1 and 0."""
    largest = max((spec.top_k for spec in outputs if spec is not None), default=0)
    top_ids = np.full((len(logits), largest), -1, np.int32)
    top_probs = np.zeros((len(logits), largest), np.float32)
    rows = [
        row
        for spec, span in zip(outputs, spans, strict=True)
        if spec is not None and spec.top_k
        for row in span
    ]
    if rows:
        top_ids[rows], top_probs[rows] = top_tokens(take_rows(logits, rows), largest)
    return top_ids, top_probs


def _check_finite(logits: NDArray[np.float32], metadata: BatchMetadata) -> None:
    if not logits.size or np.isfinite(logits.max()):  # the maximum of NaN is NaN
        return
    row = int(np.flatnonzero(~np.isfinite(logits.max(axis=1)))[0])
    request = int(np.searchsorted(metadata.output_indptr, row, side="right")) - 1
    raise EngineError(
        f"request {request} of the batch: expected finite logits, but the model computed "
        "NaN or infinity: check the weight files, or serve the model in float32"
    )
