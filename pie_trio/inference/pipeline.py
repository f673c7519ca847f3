"""Steps on their way: submitted one after the other, and collected in the same order."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pie_trio.engine_api import NO_PROCESSOR, NO_REQUEST
from pie_trio.errors import EngineError, MustCollectError
from pie_trio.inference.gpu.sampling import is_settled_on_device
from pie_trio.inference.outputs import make_results, only_draws
from pie_trio.inference.step import Follows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from pie_trio.engine_api import Batch, BatchResult, OutputSpec
    from pie_trio.inference.metadata import BatchMetadata
    from pie_trio.inference.outputs import OutputPlan
    from pie_trio.inference.processors import Prepared
    from pie_trio.inference.step import Pending

__all__ = ["OnItsWay", "Pipeline", "can_follow"]

MAX_STEPS = 2
"""One that runs, and one that is prepared meanwhile."""


@dataclass(frozen=True, slots=True)
class OnItsWay:
    """A step that was launched.

    Attributes:
        batch: What was asked for.
        plan: Of the batch.
        pending: On the device.
        prepared: The rows that go through processors.
        stack: Closed once it is finished: adapters may be dropped then.
    """

    batch: Batch
    plan: OutputPlan
    pending: Pending
    prepared: Prepared | None
    stack: AbstractContextManager[object]

    def finish(self) -> BatchResult:
        """Wait for it, and return its results."""
        with self.stack:
            found = self.pending.finish()
            return make_results(self.batch, self.plan, found, prepared=self.prepared)


class Pipeline:
    """The steps of one engine that are on their way, oldest first."""

    def __init__(self) -> None:
        self._steps: deque[OnItsWay] = deque()
        self._last: OnItsWay | None = None

    def __len__(self) -> int:
        return len(self._steps)

    def check(self, batch: Batch) -> None:
        """Check whether a batch may be launched now.

        Raises:
            EngineError: It has to wait for a step on its way.
        """
        if len(self._steps) >= MAX_STEPS:
            raise EngineError(
                f"expected at most {MAX_STEPS} steps on their way: collect one first"
            )
        busy = {
            number for step in list(self._steps) for number in _processors(step.batch)
        }
        for number in _processors(batch):
            if number in busy:
                raise MustCollectError(
                    f"processor {number} is part of a step on its way: collect that first"
                )

    def follows(self, batch: Batch, metadata: BatchMetadata) -> Follows | None:
        """Return which new tokens of a batch the step before samples.

        Raises:
            EngineError: There is no such step or forward, or its token is for the host first.
        """
        followers = [
            (index, forward.follows)
            for index, forward in enumerate(batch.forwards)
            if forward.follows != NO_REQUEST
        ]
        if not followers:
            return None
        last = self._last
        token_ids = None if last is None else last.pending.token_ids
        if last is None or token_ids is None:
            raise MustCollectError(
                f"request {followers[0][0]} of the batch follows a step, but the step before "
                "has no token on the device: collect it, and give the token itself"
            )
        sources = [_source(last, index, followed) for index, followed in followers]
        rows = metadata.qo_indptr[[index for index, _ in followers]].astype(np.int64)
        return Follows(rows, np.array(sources, np.int64), token_ids)

    def add(self, step: OnItsWay) -> None:
        """Add one that was launched."""
        self._steps.append(step)
        self._last = step

    def take(self) -> OnItsWay:
        """Return the oldest one, which is then to be finished.

        Raises:
            EngineError: There is none.
        """
        if not self._steps:
            raise EngineError("no step is on its way: submit one first")
        return self._steps.popleft()

    def forget(self) -> None:
        """No step can follow what was launched so far."""
        self._last = None


def can_follow(outputs: Sequence[OutputSpec]) -> bool:
    """See :meth:`pie_trio.engine_api.PipelinedEngine.can_follow`."""
    if len(outputs) != 1 or len(outputs[0].rows) != 1:
        return False
    (spec,) = outputs
    if spec.sampler is None or spec.processor != NO_PROCESSOR:
        return False
    return only_draws(spec) and is_settled_on_device(spec.sampler)


def _source(last: OnItsWay, index: int, followed: int) -> int:
    """Return the row of a step that samples what a request begins with."""
    forwards = last.batch.forwards
    if not 0 <= followed < len(forwards):
        raise EngineError(
            f"request {index} of the batch follows forward {followed} of the step before, "
            f"which has {len(forwards)}"
        )
    if not can_follow(forwards[followed].outputs):
        raise EngineError(
            f"request {index} of the batch follows forward {followed} of the step before, "
            "whose token the host has to see first: collect that step, and give the token"
        )
    place = sum(len(forward.outputs) for forward in forwards[:followed])
    return last.plan.bounds[place]


def _processors(batch: Batch) -> set[int]:
    outputs = [spec for forward in batch.forwards for spec in forward.outputs]
    outputs += [spec for projection in batch.projections for spec in projection.outputs]
    return {spec.processor for spec in outputs} - {NO_PROCESSOR}
