"""The batcher: takes commands from a memory channel, makes batches, steps the device.

The device is stepped in a thread of its own limiter, one batch at a time; while a batch runs,
calls gather in the channel.
"""

from __future__ import annotations

import heapq
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from pie_trio.control.commands import Command, PageOrder, choose_batch
from pie_trio.engine_api import Batch, Engine, ForwardResult
from pie_trio.errors import CancelledError, EngineError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from pie_trio.config import ControlConfig
    from pie_trio.control.pages import PagePool
    from pie_trio.control.rendezvous import Rendezvous

__all__ = ["Batcher", "open_batcher"]

logger = logging.getLogger(__name__)

STEP_SMOOTHING = 0.2
"""Weight of the newest step in the running mean of step times."""


class Batcher:
    """Accepts the commands of one model.

    Attributes:
        num_steps: Batches that were run.
        last_step_at: When the latest of them ended, on trio's clock.
    """

    def __init__(
        self,
        engine: Engine,
        pool: PagePool,
        rendezvous: Rendezvous,
        config: ControlConfig,
        send: trio.MemorySendChannel[Command],
    ) -> None:
        self.engine, self.pool = engine, pool
        self.rendezvous, self.config = rendezvous, config
        self.num_steps = 0
        self.last_step_at = float("-inf")
        self._send = send
        self._order = PageOrder()
        self._ready: list[tuple[int, Command]] = []  # a heap by sequence
        self._sequence = 0
        self._step_seconds = 0.0
        self._unfinished: set[Command] = set()
        self._is_stopped = False
        self._limiter = trio.CapacityLimiter(1)

    @property
    def num_unfinished(self) -> int:
        """Commands that were submitted and have not finished."""
        return len(self._unfinished)

    def submit(self, command: Command) -> None:
        """Accept a command; its ``on_done`` is called later. Never waits.

        Once the batcher has stopped, ``on_done`` gets the error at once.
        """
        if self._is_stopped:
            command.on_done(_stopped())
            return
        self._sequence += 1
        command.sequence = self._sequence
        for page in command.reads | command.writes:
            self.pool.pin(page)
        self._order.add(command)
        self._unfinished.add(command)
        # Cannot be full: it holds what all instances together may have in flight.
        self._send.send_nowait(command)

    def withdraw(self, command: Command) -> None:
        """Let a command that has not started do nothing. It keeps its place in the order."""
        if not command.is_started:
            command.is_withdrawn = True

    async def run(self, receive: trio.MemoryReceiveChannel[Command]) -> None:
        """Make and run batches until cancelled; what is left then fails."""
        try:
            while True:
                if not self._ready:
                    self._accept(await receive.receive())
                self._drain(receive)
                await self.rendezvous.wait_settled(timeout_seconds=self._patience())
                self._drain(receive)
                chosen = self._choose()
                if chosen:
                    await self._step(chosen)
        finally:
            # Instances that are cancelled together with the batcher wait for their commands
            # before they end.
            self._is_stopped = True
            for command in sorted(self._unfinished, key=lambda c: c.sequence):
                self._finish(command, _stopped())

    def _accept(self, command: Command) -> None:
        """Queue a command if it is ready and its last blocker did not queue it already."""
        if command.num_blockers == 0 and not command.is_queued:
            self._enqueue(command)

    def _enqueue(self, command: Command) -> None:
        command.is_queued = True
        heapq.heappush(self._ready, (command.sequence, command))

    def _drain(self, receive: trio.MemoryReceiveChannel[Command]) -> None:
        try:
            while True:
                self._accept(receive.receive_nowait())
        except trio.WouldBlock:
            return

    def _patience(self) -> float:
        config = self.config
        return max(
            config.rendezvous_floor_seconds,
            config.rendezvous_fraction * self._step_seconds,
        )

    def _choose(self) -> Sequence[Command]:
        """Take the next batch out of the ready commands."""
        candidates: list[Command] = []
        while self._ready:
            _, command = heapq.heappop(self._ready)
            if not command.is_withdrawn and command.sees_unfilled(self.pool):
                command.is_withdrawn, command.failure = True, _sees_unfilled()
            if command.is_withdrawn and not self._must_copy(command):
                self._finish(command, command.failure or _withdrawn())
            else:
                candidates.append(command)
        chosen = choose_batch(
            candidates,
            max_batch=self.config.max_batch,
            max_tokens=self.config.max_batch_tokens,
        )
        taken = {id(command) for command in chosen}
        self._ready = [(c.sequence, c) for c in candidates if id(c) not in taken]
        return chosen

    def _must_copy(self, command: Command) -> bool:
        """Say whether somebody counts on the copies of a withdrawn command.

        Its handles have stood for the copied pages since it was submitted.
        """
        if not command.copies:
            return False
        return any(self.pool.num_owners(copy.target) for copy in command.copies) or any(
            not other.is_withdrawn or other.copies for other in command.dependents
        )

    async def _step(self, commands: Sequence[Command]) -> None:
        for command in commands:
            command.is_started = True
        forwards = [command for command in commands if not command.is_withdrawn]
        batch = Batch(
            forwards=tuple(command.request for command in forwards),
            copies=tuple(copy for command in commands for copy in command.copies),
        )
        started = trio.current_time()
        outcomes = await self._execute(batch)
        is_good = not isinstance(outcomes, Exception)
        self.last_step_at = trio.current_time()
        elapsed = self.last_step_at - started
        self._step_seconds += STEP_SMOOTHING * (elapsed - self._step_seconds)
        self.num_steps += 1
        results = iter(() if isinstance(outcomes, Exception) else outcomes)
        for command in commands:
            is_run = is_good and not command.is_withdrawn
            command.note_outcome(self.pool, is_copied=is_good, is_run=is_run)
        for command in commands:
            if command.is_withdrawn:
                self._finish(command, command.failure or _withdrawn())
            elif isinstance(outcomes, Exception):
                self._finish(command, EngineError(str(outcomes)))
            else:
                self._finish(command, next(results))

    async def _execute(self, batch: Batch) -> Sequence[ForwardResult] | EngineError:
        """Return a result for each forward, or the error that the batch failed with."""
        size = len(batch.forwards)
        try:
            # Not abandoned on cancel: pages must outlive the step that reads them.
            results = await trio.to_thread.run_sync(
                self.engine.execute, batch, limiter=self._limiter
            )
            if len(results) != size:
                raise EngineError(f"{size} forwards, but {len(results)} results")
        except EngineError as error:
            logger.error("a batch of %d failed: %s", size, error)
            return error
        except Exception as error:
            # A bug of the engine's: fail this batch, keep serving.
            logger.exception("a batch of %d failed", size)
            text = f"the batch failed: {type(error).__name__}: {error}"
            return EngineError(text)
        return results

    def _finish(self, command: Command, outcome: ForwardResult | Exception) -> None:
        for page in command.reads | command.writes:
            self.pool.unpin(page)
        for ready in self._order.finish(command):
            self._enqueue(ready)
        self._unfinished.discard(command)
        command.on_done(outcome)


@asynccontextmanager
async def open_batcher(
    engine: Engine,
    pool: PagePool,
    rendezvous: Rendezvous,
    config: ControlConfig,
    *,
    max_in_flight: int,
) -> AsyncGenerator[Batcher]:
    """Batch the commands of one model for as long as the block is open.

    Args:
        engine: Runs the batches.
        pool: The model's pages.
        rendezvous: Who is about to submit.
        config: Limits of a batch.
        max_in_flight: Most commands of an instance; decides the capacity of the channel.
    """
    capacity = config.max_instances * max_in_flight
    send, receive = trio.open_memory_channel[Command](capacity)
    with send, receive:  # closed last: the batcher reads until it is cancelled
        async with trio.open_nursery() as nursery:
            batcher = Batcher(engine, pool, rendezvous, config, send)
            nursery.start_soon(batcher.run, receive)
            yield batcher
            nursery.cancel_scope.cancel()


def _withdrawn() -> CancelledError:
    return CancelledError("the command was withdrawn before it ran")


def _sees_unfilled() -> CancelledError:
    return CancelledError(
        "the forward attends to tokens whose own forward was withdrawn or has failed: "
        "run those again first"
    )


def _stopped() -> CancelledError:
    return CancelledError("the model is no longer served: the command did not run")
