"""The steps of one engine in their order, where a forward may follow one of the step before.

A step may be asked for before the one before it has ended. What it then lacks are tokens: an engine
that overlaps its steps knows them on its device, for any other one they are entered here.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pie_trio.engine_api import NO_REQUEST, as_pipelined
from pie_trio.errors import EngineError, MustCollectError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pie_trio.engine_api import (
        Batch,
        BatchResult,
        Engine,
        ForwardRequest,
        PipelinedEngine,
    )

__all__ = ["DeviceSteps", "StartedStep"]


class StartedStep:
    """A step that the engine was asked for. Made by :meth:`DeviceSteps.start`."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self._result: BatchResult | None = None
        self._error: BaseException | None = None
        self._collect: Callable[[], BatchResult] | None = None
        self._has_ended = threading.Event()

    def finish(self) -> BatchResult:
        """Wait for the step and return its results. Called once, in the order of the steps.

        Raises:
            EngineError: The step failed.
        """
        if self._collect is not None:
            try:
                self._result = self._collect()
            except BaseException as error:  # noqa: BLE001 - raised by `finish`
                self._error = error
            self._has_ended.set()
        if self._error is not None:
            raise self._error
        assert self._result is not None, "it has ended"
        return self._result

    def run(self, call: Callable[[], BatchResult]) -> None:
        """Let this be the step: it has ended on return."""
        try:
            self._result = call()
        except BaseException as error:  # noqa: BLE001 - raised by `finish`
            self._error = error
        self._has_ended.set()

    def collect_by(self, collect: Callable[[], BatchResult]) -> None:
        """Let the step end when it is finished."""
        self._collect = collect

    @property
    def has_failed(self) -> bool:
        """It has failed as far as is known."""
        return self._error is not None

    def wait(self) -> None:
        """Wait until it has ended, by whoever finishes it."""
        self._has_ended.wait()

    def token_of(self, forward: int) -> int | None:
        """Return what a forward has sampled; None if that failed. Waits until it is known."""
        self._has_ended.wait()
        if self._result is None:
            return None
        outputs = self._result.forwards[forward]
        return (
            None if isinstance(outputs, EngineError) else int(outputs[0].token_ids[0])
        )


class DeviceSteps:
    """Starts the steps of an engine.

    What follows a forward that has failed runs with any token, and means nothing.

    Attributes:
        is_pipelined: A step that was started goes on by itself: another thread may finish it
            while the next one is started. Else it has ended once it was started.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pipelined: PipelinedEngine | None = as_pipelined(engine)
        self._last: StartedStep | None = None
        self.is_pipelined = self._pipelined is not None

    def execute(self, batch: Batch) -> BatchResult:
        """Run one step, as :meth:`pie_trio.engine_api.Engine.execute`; no other is on its way."""
        return self.start(batch).finish()

    def start(self, batch: Batch) -> StartedStep:
        """Ask for a step. At most one other has not been finished."""
        last, step = self._last, StartedStep(batch)
        self._last = step
        engine = self._pipelined
        if engine is None:
            step.run(lambda: self._engine.execute(_with_tokens(batch, last)))
            return step
        try:
            if last is None or not _can_be_followed(engine, batch, last):
                batch = _with_tokens(batch, last)
            _submit(engine, batch, last)
        except BaseException as error:  # noqa: BLE001 - raised by `finish`
            step.run(_raiser(error))
        else:
            step.collect_by(engine.collect)
        return step


def _submit(engine: PipelinedEngine, batch: Batch, last: StartedStep | None) -> None:
    """Submit a batch, or as soon as the step before has ended, if it has to wait for that."""
    try:
        engine.submit(batch)
    except MustCollectError:
        if last is None:
            raise
        last.wait()
        engine.submit(_with_tokens(batch, last))


def _can_be_followed(engine: PipelinedEngine, batch: Batch, last: StartedStep) -> bool:
    """Say whether the device itself has what the forwards of a batch follow."""
    return not last.has_failed and all(
        engine.can_follow(last.batch.forwards[forward.follows].outputs)
        for forward in batch.forwards
        if forward.follows != NO_REQUEST
    )


def _with_tokens(batch: Batch, last: StartedStep | None) -> Batch:
    """Return a batch in which nothing follows; it waits for the step before if need be."""
    if all(forward.follows == NO_REQUEST for forward in batch.forwards):
        return batch
    forwards = tuple(_with_token(forward, last) for forward in batch.forwards)
    return replace(batch, forwards=forwards)


def _with_token(forward: ForwardRequest, last: StartedStep | None) -> ForwardRequest:
    if forward.follows == NO_REQUEST:
        return forward
    if last is None:
        raise EngineError("a forward follows a step, but this is the first one")
    token_id = last.token_of(forward.follows)
    token_ids = forward.token_ids
    if token_id is not None:
        first = np.array((token_id,), np.int32)
        token_ids = first if len(token_ids) == 1 else np.append(first, token_ids[1:])
    return replace(forward, token_ids=token_ids, follows=NO_REQUEST)


def _raiser(error: BaseException) -> Callable[[], BatchResult]:
    def fail() -> BatchResult:
        raise error

    return fail
