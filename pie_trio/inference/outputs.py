"""Which rows of a batch are computed for whom, and what becomes of their logits; numpy only.

A *state* is a row that an output may ask for: first the new tokens of all forwards, then the
slots of all projections. Requests are counted in the same order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from typing import TYPE_CHECKING

import numpy as np

from pie_trio.engine_api import BatchResult, OutputResult
from pie_trio.errors import EngineError
from pie_trio.inference.distributions import entropies, logprobs, top_tokens
from pie_trio.inference.metadata import concatenate, indptr
from pie_trio.inference.sampler import sample

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from pie_trio.engine_api import (
        Batch,
        ForwardRequest,
        OutputSpec,
        ProjectRequest,
        RequestResult,
        SamplerSpec,
    )
    from pie_trio.inference.metadata import BatchMetadata
    from pie_trio.inference.processors import Prepared

__all__ = ["Computed", "OutputPlan", "make_results", "only_draws", "plan_outputs"]

_NO_INTEGERS = np.empty(0, np.int32)
_NO_FLOATS = np.empty(0, np.float32)


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """The outputs of a batch, flattened. ``bounds[s]:bounds[s + 1]`` are the rows of output s.

    Attributes:
        num_forwards: Requests before the first projection.
        specs: Of all requests, one after the other.
        bounds: ``[num_specs + 1]``.
        requests: ``[num_rows]`` int64, whose each row is.
        own_rows: ``[num_rows]`` int32, as the request counts them.
        row_limits: ``[num_rows]`` int32, how many the request has.
        rows: ``[num_rows]`` int32, the states.
        is_sampling: Whether all outputs ask for sampled tokens and nothing else, as the logits
            are.
        is_drawing: As ``is_sampling``, but some logits may go through a processor.
        has_processors: Whether some logits go through a processor.
        is_every_state: Whether the head rows are known to be all states, in order.
        head_rows: ``[num_head_rows]`` int32, the states whose logits are needed.
        head_index: ``[num_rows]`` int64 into ``head_rows``; undefined for rows without logits.
        hidden_rows: int32, the states that are returned, output by output.
        store_rows: int32, the states that are stored.
        store_slots: int32, where each of them is.
        project_slots: int32, what the projections read.
        state_positions: ``[num_states]`` int32.
        state_indptr: ``[num_requests + 1]`` int32 into the states.
    """

    num_forwards: int
    specs: Sequence[OutputSpec]
    bounds: Sequence[int]
    requests: NDArray[np.int64]
    own_rows: NDArray[np.int32]
    row_limits: NDArray[np.int32]
    rows: NDArray[np.int32]
    is_sampling: bool
    is_drawing: bool
    has_processors: bool
    is_every_state: bool
    head_rows: NDArray[np.int32]
    head_index: NDArray[np.int64]
    hidden_rows: NDArray[np.int32]
    store_rows: NDArray[np.int32]
    store_slots: NDArray[np.int32]
    project_slots: NDArray[np.int32]
    state_positions: NDArray[np.int32]
    state_indptr: NDArray[np.int32]

    def name_of_request(self, row: int) -> str:
        """Return how a message calls the request to which a row belongs."""
        index = int(self.requests[row])
        if index < self.num_forwards:
            return f"request {index} of the batch"
        return f"projection {index - self.num_forwards} of the batch"

    def samplers(self) -> list[SamplerSpec]:
        """Return that of each row, where all outputs ask for sampled tokens."""
        return [
            spec.sampler
            for spec, (start, stop) in zip(
                self.specs, pairwise(self.bounds), strict=True
            )
            for _ in range(start, stop)
            if spec.sampler is not None
        ]

    def requests_of_states(self, states: Iterable[int]) -> set[int]:
        """Return the requests to which some states belong."""
        places = np.searchsorted(self.state_indptr, list(states), side="right") - 1
        return set(places.tolist())


@dataclass(frozen=True, slots=True)
class Computed:
    """What a step has found, for :func:`make_results`.

    Attributes:
        logits: ``[num_head_rows, vocab_size]`` float32; empty where tokens were drawn already.
        hidden: ``[len(plan.hidden_rows), hidden_size]`` float32.
        broken: Requests in which something was not finite, counted as in the plan.
        token_ids: ``[num_rows]`` int32, where they were drawn on the device; else None.
    """

    logits: NDArray[np.float32]
    hidden: NDArray[np.float32]
    broken: Collection[int]
    token_ids: NDArray[np.int32] | None = None


def plan_outputs(batch: Batch, metadata: BatchMetadata) -> OutputPlan:
    """Flatten the outputs of a batch whose shapes are right; values are not looked at."""
    requests = _requests(batch)
    specs = [spec for request in requests for spec in request.outputs]
    counts = [len(spec.rows) for spec in specs]
    has_one_each = len(specs) == len(requests) and all(r.outputs for r in requests)
    has_one_row_each = counts.count(1) == len(counts)
    if has_one_each:
        owners = np.arange(len(specs))
    else:
        repeated = [i for i, r in enumerate(requests) for _ in r.outputs]
        owners = np.array(repeated, np.int64)
    if not has_one_row_each:
        owners = owners.repeat(counts)
    limits, starts = metadata.query_lens, metadata.qo_indptr
    positions, project_slots = metadata.positions, _NO_INTEGERS
    if batch.projections:
        lengths = np.array([len(p.slots) for p in batch.projections], np.int32)
        limits = np.concatenate((limits, lengths))
        starts = indptr(limits)
        project_slots = concatenate([p.slots for p in batch.projections])
        positions = np.concatenate(
            (positions, *(p.positions for p in batch.projections))
        )
    own_rows = concatenate([spec.rows for spec in specs])
    rows = own_rows + starts[owners]
    bounds = [0, *accumulate(counts)]
    is_drawing = all(map(only_draws, specs))
    is_sampling = is_drawing and not any(spec.processor for spec in specs)
    head_rows, head_index = rows, np.arange(len(rows))
    hidden_rows = store_rows = store_slots = _NO_INTEGERS
    if not is_sampling:
        head_rows, head_index = _unique_rows(rows, _rows_of(specs, bounds, _has_logits))
        hidden_rows = rows[_rows_of(specs, bounds, lambda spec: spec.hidden)]
        store_rows = rows[_rows_of(specs, bounds, lambda s: s.store is not None)]
        store_slots = concatenate([s.store for s in specs if s.store is not None])
    elif len(specs) > len(requests):  # several draws from the same row
        head_rows, head_index = _unique_rows(rows, range(len(rows)))
    return OutputPlan(
        num_forwards=len(batch.forwards),
        specs=specs,
        bounds=bounds,
        requests=owners,
        own_rows=own_rows,
        row_limits=limits[owners],
        rows=rows,
        is_sampling=is_sampling,
        is_drawing=is_drawing,
        has_processors=not is_sampling and any(spec.processor for spec in specs),
        # Each request has one state and one row, so that row is 0: see check_values.
        is_every_state=is_sampling
        and has_one_each
        and has_one_row_each
        and len(positions) == len(requests),
        head_rows=head_rows,
        head_index=head_index,
        hidden_rows=hidden_rows,
        store_rows=store_rows,
        store_slots=store_slots,
        project_slots=project_slots,
        state_positions=positions,
        state_indptr=starts,
    )


def make_results(
    batch: Batch,
    plan: OutputPlan,
    found: Computed,
    *,
    prepared: Prepared | None = None,
) -> BatchResult:
    """Sample, rank and measure all rows of a batch at once, and hand them out by request.

    Args:
        batch: What was asked for.
        plan: Of the same batch.
        found: What the step has found; rows of logits that are no numbers are cleared.
        prepared: The rows that go through processors, if there are any.
    """
    failures: dict[int, EngineError] = {}
    if found.token_ids is not None:
        outputs = _outputs_of(plan, found.token_ids)
        if prepared is not None:
            ended, failures = _settle(plan, prepared, found.token_ids, found.broken)
            for output, row in zip(outputs, plan.bounds, strict=False):
                output.has_ended = ended.get(row, False)
        return _hand_out(batch, plan, outputs, failures, found.broken)
    logits, hidden, broken = found.logits, found.hidden, found.broken
    best = logits.argmax(axis=1)
    peaks = logits[np.arange(len(logits)), best]  # NaN where a row has one
    if not all(map(math.isfinite, peaks.tolist())):
        is_bad = ~np.isfinite(peaks)
        logits[is_bad] = 0.0  # what follows has no place for NaN
        broken = {*broken, *plan.requests_of_states(plan.head_rows[is_bad].tolist())}
    if plan.is_sampling:
        outputs = _sampled_outputs(plan, logits, best)
    else:
        made = _Outputs(plan, logits, hidden, best)
        if prepared is not None:
            failures = made.sample_processed(prepared, broken)
        outputs = made.make()
    return _hand_out(batch, plan, outputs, failures, broken)


def _hand_out(
    batch: Batch,
    plan: OutputPlan,
    outputs: Sequence[OutputResult],
    failures: Mapping[int, EngineError],
    broken: Collection[int],
) -> BatchResult:
    """Give each request its outputs, or its error."""
    results: list[RequestResult | EngineError]
    requests = _requests(batch)
    if len(outputs) == len(requests) and all(r.outputs for r in requests):
        results = [(output,) for output in outputs]
    else:
        remaining = iter(outputs)
        results = [tuple(islice(remaining, len(r.outputs))) for r in requests]
    for index, error in failures.items():
        results[index] = error
    for index in broken:
        results[index] = EngineError(
            "expected finite numbers, but the model computed NaN or infinity: "
            "check the weight files, or serve the model in float32"
        )
    count = plan.num_forwards
    return BatchResult(tuple(results[:count]), tuple(results[count:]))


def _settle(
    plan: OutputPlan,
    prepared: Prepared,
    token_ids: NDArray[np.int32],
    broken: Collection[int],
) -> tuple[dict[int, bool], dict[int, EngineError]]:
    """Let processors accept what was drawn.

    Returns:
        Which rows have ended by that, and the requests that failed.
    """
    rows = prepared.rows
    owners: list[int] = plan.requests[rows].tolist()
    skipped = [index for index, owner in enumerate(owners) if owner in broken]
    ended, failures = prepared.settle(token_ids[rows], skipped)
    return dict(zip(rows, ended, strict=True)), {
        owners[index]: error for index, error in failures.items()
    }


def _sampled_outputs(
    plan: OutputPlan, logits: NDArray[np.float32], best: NDArray[np.int64]
) -> list[OutputResult]:
    if len(plan.head_rows) < len(plan.rows):
        logits, best = logits[plan.head_index], best[plan.head_index]
    samplers, positions = plan.samplers(), plan.state_positions[plan.rows]
    return _outputs_of(plan, sample(logits, samplers, positions, best=best))


def _outputs_of(plan: OutputPlan, token_ids: NDArray[np.int32]) -> list[OutputResult]:
    none, ints = _NO_FLOATS, _NO_INTEGERS
    return [
        OutputResult(token_ids[start:stop], ints, none, none, none, none, none)
        for start, stop in pairwise(plan.bounds)
    ]


class _Outputs:
    """The results of outputs that ask for different things; each is computed for all at once."""

    def __init__(
        self,
        plan: OutputPlan,
        logits: NDArray[np.float32],
        hidden: NDArray[np.float32],
        best: NDArray[np.int64],
    ) -> None:
        self._plan, self._logits, self._best = plan, logits, best
        self._hidden = hidden
        num_rows, specs = len(plan.rows), plan.specs
        self._token_ids = np.full(num_rows, -1, np.int32)
        self._logprobs = np.zeros(num_rows, np.float32)
        self._entropy = np.zeros(num_rows, np.float32)
        largest = max((spec.top_k for spec in specs), default=0)
        self._top_ids = np.full((num_rows, largest), -1, np.int32)
        self._top_probs = np.zeros((num_rows, largest), np.float32)
        self._has_ended: dict[int, bool] = {}

    def sample_processed(
        self, prepared: Prepared, broken: Collection[int]
    ) -> dict[int, EngineError]:
        """Sample the rows that go through processors; return the requests that failed."""
        plan, rows = self._plan, prepared.rows
        logits = self._logits[plan.head_index[rows]]  # a copy
        self._token_ids[rows] = prepared.draw(range(len(rows)), logits)
        self._has_ended, failures = _settle(plan, prepared, self._token_ids, broken)
        return failures

    def make(self) -> list[OutputResult]:
        self._sample()
        if rows := self._rows_of(_has_logprobs):
            chosen = self._token_ids[rows]
            self._logprobs[rows] = logprobs(self._logits_of(rows), chosen)
        if rows := self._rows_of(lambda spec: spec.entropy):
            self._entropy[rows] = entropies(self._logits_of(rows))
        if rows := self._rows_of(lambda spec: spec.top_k > 0):
            count = self._top_ids.shape[1]
            top = top_tokens(self._logits_of(rows), count)
            self._top_ids[rows], self._top_probs[rows] = top
        results: list[OutputResult] = []
        num_hidden = 0
        for spec, span in zip(
            self._plan.specs, pairwise(self._plan.bounds), strict=True
        ):
            own, top_k = slice(*span), spec.top_k
            first_hidden, num_hidden = (
                num_hidden,
                num_hidden + (len(spec.rows) if spec.hidden else 0),
            )
            has_tokens = spec.sampler is not None
            results.append(
                OutputResult(
                    token_ids=self._token_ids[own] if has_tokens else _NO_INTEGERS,
                    top_ids=self._top_ids[own, :top_k] if top_k else _NO_INTEGERS,
                    top_probs=self._top_probs[own, :top_k] if top_k else _NO_FLOATS,
                    logprobs=self._logprobs[own] if _has_logprobs(spec) else _NO_FLOATS,
                    entropy=self._entropy[own] if spec.entropy else _NO_FLOATS,
                    # Copies, so that who keeps a row does not keep the whole batch.
                    logits=self._logits[self._plan.head_index[own]]
                    if spec.logits
                    else _NO_FLOATS,
                    hidden=self._hidden[first_hidden:num_hidden].copy()
                    if spec.hidden
                    else _NO_FLOATS,
                    has_ended=self._has_ended.get(span[0], False),
                )
            )
        return results

    def _sample(self) -> None:
        plan = self._plan
        rows = self._rows_of(_is_sampled_plainly)
        if not rows:
            return
        self._token_ids[rows] = sample(
            self._logits_of(rows),
            [
                s.sampler
                for s in plan.specs
                if s.sampler is not None and not s.processor
                for _ in s.rows
            ],
            plan.state_positions[plan.rows[rows]],
            best=self._best[plan.head_index[rows]],
        )

    def _rows_of(self, is_asked: Callable[[OutputSpec], bool]) -> list[int]:
        return _rows_of(self._plan.specs, self._plan.bounds, is_asked)

    def _logits_of(self, rows: Sequence[int]) -> NDArray[np.float32]:
        index = self._plan.head_index[rows]
        is_all = len(index) == len(self._logits)
        if is_all and (index == np.arange(len(index))).all():
            return self._logits
        return self._logits[index]


def _requests(batch: Batch) -> Sequence[ForwardRequest | ProjectRequest]:
    if not batch.projections:
        return batch.forwards
    return (*batch.forwards, *batch.projections)


def only_draws(spec: OutputSpec) -> bool:
    """Say whether an output asks for sampled tokens and nothing else."""
    return spec.sampler is not None and not (
        spec.top_k
        or spec.logprobs
        or spec.entropy
        or spec.logits
        or spec.hidden
        or spec.store is not None
    )


def _is_sampled_plainly(spec: OutputSpec) -> bool:
    return spec.sampler is not None and not spec.processor


def _has_logits(spec: OutputSpec) -> bool:
    return bool(spec.sampler is not None or spec.top_k or spec.entropy or spec.logits)


def _has_logprobs(spec: OutputSpec) -> bool:
    return spec.logprobs and spec.sampler is not None


def _rows_of(
    specs: Sequence[OutputSpec],
    bounds: Sequence[int],
    is_asked: Callable[[OutputSpec], bool],
) -> list[int]:
    """Return the rows of the outputs that ask for something, ascending."""
    return [
        row
        for spec, (start, stop) in zip(specs, pairwise(bounds), strict=True)
        if is_asked(spec)
        for row in range(start, stop)
    ]


def _unique_rows(
    rows: NDArray[np.int32], chosen: Sequence[int]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the states of the chosen rows, each once, and for every row which it is."""
    index = np.zeros(len(rows), np.int64)
    states, index[chosen] = np.unique(rows[chosen], return_inverse=True)
    return states, index
