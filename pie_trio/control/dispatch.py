"""The batcher: takes commands from a memory channel, makes batches, steps the device.

The device is stepped beside the event loop, one batch at a time; while a batch runs, calls
gather in the channel. Where nearly all of a batch are decode streams, the next one is made and handed
over while it runs: see :mod:`~pie_trio.control.streams`.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import trio

from pie_trio.control.arrivals import Arrivals
from pie_trio.control.choosing import Choice, Limits, choose_batch
from pie_trio.control.commands import Command, CommandOrder, Kind
from pie_trio.control.contention import RETRY_SECONDS, Fail, Wait
from pie_trio.control.device_thread import Device, OpenDevice, open_device_thread
from pie_trio.control.policies import BatchState, make_policy
from pie_trio.control.shortages import Shortages, evicted_error
from pie_trio.control.steps import Member, Step
from pie_trio.control.streams import DecodeStream
from pie_trio.control.trace import Trace
from pie_trio.engine_api import Batch, BatchResult, Engine, PageCopy
from pie_trio.errors import (
    CancelledError,
    EngineError,
    EngineLostError,
    OutOfPagesError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Sequence

    from pie_trio.config import ControlConfig
    from pie_trio.control.embeds import EmbedPool
    from pie_trio.control.pages import PagePool
    from pie_trio.control.tenants import Tenant
    from pie_trio.engine_api import ForwardRequest, ProjectRequest, RequestResult

__all__ = ["Batcher", "open_batcher"]

logger = logging.getLogger(__name__)

MAX_LONE_TOKENS = 4
"""A lone forward of so few tokens takes about as long as one token."""

STEP_SMOOTHING = 0.2
"""Weight of the newest step in the running mean of step times."""


class Batcher:
    """Accepts the commands of one model.

    Attributes:
        arrivals: Who is about to submit.
        trace: What happened.
        tenants: Inferlets that use the model: whoever submits is among them.
        num_steps: Batches that were run.
        last_step_at: When the latest of them ended, on trio's clock.
        on_lost: Is told that the engine was lost, when all commands have ended by that.
        on_restored: Called when there is an engine again.
        refusal: Why there will never be one again; None as long as there may be.
        step_seconds: Running mean of the time of a step.
    """

    def __init__(
        self,
        engine: Engine,
        pool: PagePool,
        embeds: EmbedPool,
        config: ControlConfig,
        device: Device,
        *,
        max_queued: int,
    ) -> None:
        self.engine, self.pool, self.embeds = engine, pool, embeds
        self.config = config
        self.policy = make_policy(config.policy)
        self.arrivals = Arrivals(self.poke)
        self.trace = Trace(trio.current_time)
        self.tenants: dict[Tenant, None] = {}
        self._shortages = Shortages(engine, pool, self.tenants, config, device)
        self.num_steps = 0
        self.last_step_at = float("-inf")
        self.step_seconds = 0.0
        self._lone_seconds = 1.0  # until measured
        self._limits = Limits(
            max_batch=min(config.max_batch, self.policy.max_batch or config.max_batch),
            max_tokens=config.max_batch_tokens,
            chunk_tokens=config.chunk_tokens,
        )
        self._device = device
        self._send, self._receive = trio.open_memory_channel[Command](max_queued)
        self._order = CommandOrder(pool)
        self._ready: dict[Command, None] = {}
        self._sequence = 0
        self._suspensions: list[tuple[Tenant, Callable[[], None]]] = []
        self._calls_in_step: list[Callable[[], None]] = []
        self._gathering_since = 0.0
        self._changed = trio.Event()
        self._is_stopped = self._has_withdrawn = False
        self._steps: deque[Step] = deque()  # on their way
        self.on_lost: Callable[[EngineLostError], None] = lambda _: None
        self.on_restored: Callable[[], None] = lambda: None
        self.refusal: EngineError | None = None
        self._loss: EngineLostError | None = None  # the latest
        self._restored = trio.Event()
        self._restored.set()
        pool.on_freed = self.poke
        pool.on_event = self.trace.note_page

    @property
    def num_unfinished(self) -> int:
        """Commands that were submitted and have not finished."""
        return len(self._order)

    def uses_adapter(self, name: str) -> bool:
        """Say whether an unfinished command runs with this adapter, or may."""
        return any(
            c.forward is not None
            and c.forward.adapter == name
            and not (c.is_withdrawn and c in self._ready and not c.num_in_steps)
            for c in self._order
        )

    def end_paused(self, adapter: str, failure: Exception) -> None:
        """End the streams with an adapter whose readers are late: that may be for ever."""
        for command in list(self._order):
            request = command.forward
            if command.is_paused and request is not None and request.adapter == adapter:
                command.failure = failure
                command.withdraw()

    @property
    def reclaim(self) -> Callable[[int], int]:
        """Drops exports that nobody uses: see :class:`~.shortages.Shortages`."""
        return self._shortages.reclaim

    @reclaim.setter
    def reclaim(self, reclaim: Callable[[int], int]) -> None:
        self._shortages.reclaim = reclaim

    def submit(self, command: Command, *, beside: Command | None = None) -> None:
        """Accept a command; its ``on_done`` is called later. Never waits.

        Once the batcher has stopped, ``on_done`` gets the error at once. The order with
        ``beside`` does not matter: see :meth:`CommandOrder.add`.
        """
        if self._is_stopped:
            command.on_done(_stopped())
            return
        if self.refusal is not None:
            command.on_done(_again(self.refusal))
            return
        self._sequence += 1
        command.sequence = command.waiting_since = self._sequence
        command.on_withdrawn = self._note_withdrawn
        tenant = command.tenant
        tenant.last_used_at = command.submitted_at
        if tenant.is_evicted:
            command.is_withdrawn, command.failure = True, evicted_error(self.pool)
        if command.embeds:
            self.embeds.pin(command.embeds)
        self._order.add(command, beside=beside)
        # Cannot be full: it holds what all instances together may have in flight.
        self._send.send_nowait(command)
        self._changed.set()

    def resume(self, command: Command) -> None:
        """Let a command go on that was paused."""
        command.is_paused = False
        command.waiting_since = self._sequence
        self._ready[command] = None
        self._changed.set()

    def add_page(self, command: Command, page: int) -> None:
        """Let an unfinished command write one more page: see :class:`CommandOrder`."""
        self._order.add_page(command, page)

    def release_pages(self, command: Command, pages: Iterable[int]) -> None:
        """Let others read what a command has written: see :class:`CommandOrder`."""
        self._order.release_pages(command, pages)
        if command.on_written:
            for page in pages:
                self._tell_written(command, page)

    def when_written(self, page: int, call: Callable[[], None]) -> None:
        """Call once what is enqueued on a page has written it: see :class:`CommandOrder`."""
        self._order.when_written(page, call)

    @staticmethod
    def _tell_written(command: Command, page: int) -> None:
        call = command.on_written.pop(page, None)
        if call is None:
            return
        try:
            call()
        except Exception:  # a bug of ours: it must not end the model for everybody
            logger.exception("what waited for a page could not be told")

    def call_in_step(self, call: Callable[[], None]) -> None:
        """Call soon, but rather when the device is at work.

        What that wakes up would otherwise compute while the batch waits for others.
        """
        self._calls_in_step.append(call)

    def suspend(self, tenant: Tenant, on_done: Callable[[], None]) -> None:
        """Move what an inferlet alone holds to host memory, after the step that runs.

        Its next command brings it back. ``on_done`` is called also if there was no room.
        """
        if self._is_stopped or self.refusal is not None:
            on_done()
            return
        self._suspensions.append((tenant, on_done))
        self._changed.set()

    def poke(self) -> None:
        """Note that something has changed: look again whether a batch can be made."""
        self._changed.set()

    @property
    def is_restored(self) -> bool:
        """There is an engine: it was not lost, or there is another one."""
        return self._restored.is_set()

    async def wait_restored(self) -> None:
        """Wait until there is an engine, or never will be."""
        await self._restored.wait()

    def _note_withdrawn(self) -> None:
        self._has_withdrawn = True
        self._changed.set()

    async def run(self) -> None:
        """Make and run batches until cancelled; what is left then fails."""
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    if self._device.error is not None:
                        await self._settle()
                        await self._restore(self._device.error)
                    with suppress(EngineLostError):  # while pages were moved
                        await self._run_one(nursery)
        finally:
            # Instances that are cancelled together with the batcher wait for their commands
            # before they end.
            self._is_stopped = True
            self._send.close()
            self._receive.close()
            self._make_calls()
            for command in sorted(self._order, key=lambda c: c.sequence):
                command.num_in_steps = 0
                is_over = command.is_over
                self._finish(command, command.last_outcome if is_over else _stopped())
            for _, on_done in self._suspensions:
                on_done()

    async def _run_one(self, nursery: trio.Nursery) -> None:
        """Run the next batch, or do what it has to wait for."""
        self._drain()
        if self._steps and not self._may_make_next():
            self._make_calls()
            await self._steps[0].has_ended.wait()
            return
        if not self._ready and not self._suspensions:
            self._make_calls()
            await self._wait_for_change(math.inf)
            return
        if self._suspensions:
            await self._settle()
            await self._suspend_all()
        await self._gather()
        choice = self._choose()
        if choice.starved is not None:
            if self._steps:
                await self._settle()
                return
            if await self._relieve(choice):
                return
        if choice.commands:
            await self._run_choice(choice, nursery)
        elif self._ready:  # all of inferlets that were told to end, or that copy first
            self._make_calls()
            await self._wait_for_change(RETRY_SECONDS)

    def _may_make_next(self) -> bool:
        """Let streams go ahead; say whether there may be a step after the one on its way now."""
        (*others, last) = self._steps
        if others or not (self.config.goes_ahead and last.find_ahead()):
            return False
        for stream, place in last.take_ahead():
            stream.go_ahead(place)
            stream.waiting_since = self._sequence
            self._accept(stream)
        return True

    async def _settle(self) -> None:
        """Wait until no step is on its way."""
        while self._steps:
            await self._steps[-1].has_ended.wait()

    # ---- an engine that was lost ------------------------------------------------------

    async def _restore(self, error: EngineError) -> None:
        """Let everything fail that the engine has taken along, and wait for another one.

        What is submitted meanwhile waits; if there never is another one, it fails.
        """
        self._restored = trio.Event()
        lost = error if isinstance(error, EngineLostError) else None
        self._loss = lost = lost or EngineLostError(self.engine.info.name, str(error))
        self._finish_all(lost)
        self.pool.lose_device()
        self.embeds.lose_device()
        self.on_lost(lost)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sweep_meanwhile)
            try:
                await self._device.restore()
            except EngineError as failure:
                self.refusal = failure
            nursery.cancel_scope.cancel()
        if self.refusal is None:
            self.on_restored()
        self._restored.set()
        while self.refusal is not None:
            self._finish_all(self.refusal)
            while self._suspensions:
                self._suspensions.pop(0)[1]()
            await self._wait_for_change(math.inf)

    async def _sweep_meanwhile(self) -> None:
        """Let those end that nobody wants any more."""
        while True:
            self._drain()
            self._make_calls()
            self._sweep()
            await self._wait_for_change(math.inf)

    def _finish_all(self, error: EngineError) -> None:
        self._make_calls()
        self._drain()
        for command in sorted(self._order, key=lambda c: c.sequence):
            for copy in () if command.is_copied else command.copies:
                self.pool.note_lost(copy.target)
            if not command.is_finished:
                self._finish(command, _again(error))

    # ---- gathering --------------------------------------------------------------------

    def _drain(self) -> None:
        """Take what is in the channel."""
        try:
            while True:
                command = self._receive.receive_nowait()
                # One that had to wait for others may have become ready, and more, meanwhile.
                if command.num_blockers == 0 and not command.is_accepted:
                    self._accept(command)
        except trio.WouldBlock:
            return

    def _accept(self, command: Command) -> None:
        command.is_accepted = True
        self._ready[command] = None
        # Or who was withdrawn while it waited for others would wait for the next batch too.
        self._has_withdrawn |= command.is_withdrawn

    async def _gather(self) -> None:
        """Let commands gather for as long as the policy wants."""
        self._gathering_since = trio.current_time()
        while self._ready:
            self._drain()
            if self._has_withdrawn:
                self._sweep()
                continue
            seconds = self.policy.wait_seconds(self._state())
            if seconds <= 0:
                return
            await self._wait_for_change(seconds)

    def _state(self) -> BatchState:
        return BatchState(
            now=trio.current_time(),
            gathering_since=self._gathering_since,
            num_ready=len(self._ready),
            oldest_at=min([command.submitted_at for command in self._ready]),
            progress_at=max(self._gathering_since, self.arrivals.settled_at),
            num_expected=self.arrivals.num_expected,
            step_seconds=self.step_seconds,
            turn_seconds=self.arrivals.turn_seconds,
        )

    async def _wait_for_change(self, seconds: float) -> None:
        """Wait until :meth:`poke`, or until the time is over."""
        self._changed = trio.Event()
        if seconds == math.inf:
            await self._changed.wait()
            return
        with trio.move_on_after(seconds):
            await self._changed.wait()

    # ---- choosing ---------------------------------------------------------------------

    def _make_calls(self) -> None:
        calls, self._calls_in_step = self._calls_in_step, []
        for call in calls:
            call()

    def _choose(self) -> Choice:
        self._sweep()
        for command in list(self._ready):
            if isinstance(command, DecodeStream) and not command.look_at_owners():
                del self._ready[command]  # until the step has ended
        return choose_batch(
            self._ready,
            self.pool,
            self._limits,
            num_expected=self.arrivals.num_expected,
        )

    def _sweep(self) -> None:
        """Let the ready commands end that nobody wants, or that would see a hole."""
        self._has_withdrawn = False
        unchecked = list(self._ready)
        while unchecked:
            command = unchecked.pop()
            if command.num_in_steps:  # what it sees is about to be written
                if command.is_withdrawn:
                    del self._ready[command]  # it finishes with the step
                continue
            if not command.is_withdrawn and self._sees_hole(command):
                command.is_withdrawn = True
                command.failure = self._hole_error(command)
            if command.is_withdrawn and not self._must_copy(command):
                # What becomes ready by that may see what this one did not write.
                unchecked += self._finish(command, command.failure or _withdrawn())

    def _sees_hole(self, command: Command) -> bool:
        if command.embeds and not self.embeds.are_filled(command.read_embeds):
            return True
        return command.sees_hole(self.pool)

    def _hole_error(self, command: Command) -> Exception:
        is_lost = not self.pool.lost.isdisjoint(command.uses) or not (
            self.embeds.lost.isdisjoint(command.read_embeds)
        )
        if is_lost and self._loss is not None:
            return self._loss.again()
        return _sees_hole()

    def _must_copy(self, command: Command) -> bool:
        """Say whether somebody counts on the copies of a withdrawn command.

        Its handles have stood for the copied pages since it was submitted.
        """
        if not command.copies or command.is_copied:
            return False
        if command.tenant.is_evicted and self.pool.unbound(command.pages):
            return False  # or those that it was ended for would wait for ever
        targets = [copy.target for copy in command.copies]
        return any(self.pool.num_owners(target) for target in targets) or any(
            not (other.is_withdrawn and not other.copies)
            and not other.uses.isdisjoint(targets)
            for other in command.dependents
        )

    async def _suspend_all(self) -> None:
        while self._suspensions:
            tenant, on_done = self._suspensions[0]
            await self._shortages.suspend(tenant)
            self._suspensions.pop(0)
            on_done()

    async def _relieve(self, choice: Choice) -> bool:
        """Do something for a command that lacks pages; False if what can run is to run now."""
        match await self._shortages.relieve(choice):
            case Wait(seconds=seconds):
                if choice.commands:
                    return False
                self._make_calls()
                await self._wait_for_change(seconds)
            case Fail():
                assert choice.starved is not None, "it is what fails"
                error = OutOfPagesError(
                    needed=choice.num_needed,
                    free=self.pool.num_free,
                    total=self.pool.num_pages,
                )
                self._finish(choice.starved, error)
            case _:
                pass
        return True

    # ---- stepping ---------------------------------------------------------------------

    async def _run_choice(self, choice: Choice, nursery: trio.Nursery) -> None:
        if self.pool.swapped:
            # Pages that an inferlet exported or shared before it was suspended.
            swapped = self.pool.swapped.keys()
            # Not all that is in `uses`: pages that a stream has not reached were not counted.
            needed = {
                page
                for c in choice.commands
                for page in swapped & set(c.pages.tolist())
            }
            if needed:
                if self._steps:
                    await self._settle()
                    return  # and choose again
                for command in choice.commands:
                    command.bound_at = -1  # what there is no room for is counted again
                if num_free := self.pool.num_free:
                    await self._shortages.bring_in(sorted(needed)[:num_free])
                return  # and choose again: some may be withdrawn, or lost
        await self._step(choice, nursery)

    async def _step(self, choice: Choice, nursery: trio.Nursery) -> None:
        """Let a batch run, and wait for it unless the next one is to be made meanwhile."""
        step = self._make_step(choice)
        if self._steps or (self.config.goes_ahead and step.find_ahead()):
            before = self._steps[-1] if self._steps else None
            self._steps.append(step)
            nursery.start_soon(self._run_beside, step, before)
            return
        is_lone = len(self.tenants) == 1 and self._is_lone(choice)
        is_short = is_lone and self._lone_seconds < self.config.inline_seconds
        is_here = is_short or not self.config.has_device_thread
        outcomes = await self._execute(step.batch, is_here=is_here)
        elapsed = self._note_step(step, outcomes)
        if is_lone:
            self._lone_seconds += STEP_SMOOTHING * (elapsed - self._lone_seconds)

    async def _run_beside(self, step: Step, before: Step | None) -> None:
        """Let a step run, and note what came of it."""
        if before is not None:
            await before.has_begun.wait()  # trio starts tasks in any order
        step.has_begun.set()
        is_here = not self.config.has_device_thread
        outcomes = await self._execute(step.batch, is_here=is_here)
        if before is not None:
            await before.has_ended.wait()
        self._note_step(step, outcomes)
        self._steps.popleft()
        step.has_ended.set()
        self._changed.set()

    def _make_step(self, choice: Choice) -> Step:
        chosen_at = trio.current_time()
        self.num_steps += 1
        num_ready = len(self._ready)
        num_blocked = (
            len(self._order)
            - num_ready
            - len(
                {m.command for step in self._steps for m in step.members}
                - self._ready.keys()
            )
        )
        for command in choice.commands:
            del self._ready[command]
            if not command.num_in_steps:
                self._note_part_of(command, self.num_steps, chosen_at)
        late = tuple(self.arrivals.expected)
        self.arrivals.forget()
        # Who is withdrawn from now on runs all the same.
        members = [
            Member(command, count, not command.is_withdrawn)
            for command, count in zip(choice.commands, choice.num_tokens, strict=True)
        ]
        self._make_calls()  # they run while the device does
        batch = self._make_batch(members)
        return Step(
            self.num_steps,
            choice,
            members,
            chosen_at,
            self._gathering_since,
            num_ready,
            num_blocked,
            late,
            self.pool.num_free,
            batch,
        )

    def _note_step(self, step: Step, outcomes: BatchResult | EngineError) -> float:
        """Note what came of a step; return the seconds that the device worked for it."""
        begins_at = max(step.chosen_at, self.last_step_at)
        self.last_step_at = ended_at = trio.current_time()
        elapsed = ended_at - begins_at
        self.step_seconds += STEP_SMOOTHING * (elapsed - self.step_seconds)
        self.trace.note_step(step.record(begins_at, ended_at, self.config.policy))
        if isinstance(outcomes, EngineError):
            self._note_failed(step, begins_at, outcomes)
        else:
            self._note_outcomes(step, begins_at, outcomes)
        return elapsed

    @staticmethod
    def _is_lone(choice: Choice) -> bool:
        """Say whether nothing can happen during a step but that its one command ends."""
        if len(choice.commands) > 1 or choice.num_tokens[0] > MAX_LONE_TOKENS:
            return False
        return not choice.commands[0].goes_on

    def _make_batch(self, members: Sequence[Member]) -> Batch:
        pool = self.pool
        copies: list[PageCopy] = []
        forwards: list[ForwardRequest] = []
        projections: list[ProjectRequest] = []
        for member in members:
            command = member.command
            command.num_in_steps += 1
            if command.bound_at != pool.num_moves:
                pool.bind(command.pages, command.tenant.name)
            if not command.is_copied:
                copies += [_physical_copy(copy, pool) for copy in command.copies]
            if not member.is_run:
                continue
            if (request := command.forward) is not None:
                member.request, member.place = request, len(forwards)
                member.start = request.kv_len - command.num_tokens
                forwards.append(command.cut(member.num_tokens, pool))
            elif command.project is not None:
                projections.append(command.project)
        return Batch(tuple(forwards), tuple(copies), tuple(projections))

    async def _execute(
        self, batch: Batch, *, is_here: bool
    ) -> BatchResult | EngineError:
        """Return the results, or the error that the whole batch failed with.

        Args:
            batch: What to run.
            is_here: Run it in this thread: the way to the other and back takes longer.
        """
        size = len(batch.forwards), len(batch.projections)
        try:
            result = await self._device.execute(batch, is_here=is_here)
            found = len(result.forwards), len(result.projections)
            if found != size:
                raise EngineError(f"{sum(size)} requests, but {sum(found)} results")
        except EngineLostError as error:
            return error  # it was reported where it was noticed
        except EngineError as error:
            logger.error("a batch of %d failed: %s", sum(size), error)
            return error
        except Exception as error:
            # A bug of the engine's: fail this batch, keep serving.
            logger.exception("a batch of %d failed", sum(size))
            text = f"the batch failed: {type(error).__name__}: {error}"
            return EngineError(text)
        return result

    def _note_outcomes(
        self, step: Step, begins_at: float, outcomes: BatchResult
    ) -> None:
        results = iter((*outcomes.forwards, *outcomes.projections))
        finished: list[tuple[Command, RequestResult | Exception | None]] = []
        for member in step.members:
            command = member.command
            command.num_in_steps -= 1
            result = next(results) if member.has_result else None
            if command.is_over:
                finished.append((command, self._note_too_many(member)))
                continue
            self._note_part_of(command, step.number, begins_at)
            if not command.is_copied:
                self._note_copies(command)
            if not member.is_run:
                finished.append((command, command.failure or _withdrawn()))
                continue
            command.tenant.note_step(step.number)
            if result is None:
                finished.append((command, None))
            elif isinstance(result, EngineError):
                self._note_failed_part(member)
                finished.append((command, result))
            elif self._note_part(member, result):
                finished.append((command, command.outcome(result)))
            elif not command.num_in_steps:  # the next chunk, or token of a stream
                command.waiting_since = self._sequence
                if not command.is_paused:
                    self._accept(command)
        for command, outcome in finished:
            self._finish(command, outcome, self.last_step_at)

    @staticmethod
    def _note_part_of(command: Command, number: int, begins_at: float) -> None:
        """Note which step a command is part of; of two, the one whose results come next."""
        command.batch, command.batched_at = number, begins_at
        command.started_at = command.started_at or begins_at

    @staticmethod
    def _note_too_many(member: Member) -> RequestResult | Exception | None:
        """Forget a part of a command that had ended before; return how that had ended."""
        command = member.command
        if member.is_run:
            command.drop_part()
        return command.last_outcome

    def _note_part(self, member: Member, result: RequestResult) -> bool:
        """Note what a command has written; return whether it is done with that."""
        command, request, count = member.command, member.request, member.num_tokens
        if request is None:
            return True
        command.tenant.num_tokens += count
        if num_sampled := sum(len(found.token_ids) for found in result):
            if command.tenant.first_sampled_at is None:
                command.tenant.first_sampled_at = self.last_step_at
            command.tenant.num_sampled += num_sampled
        self.pool.note_written(request.page_ids, member.start, count, is_good=True)
        if not command.add_part(result, count):
            return False
        if command.embeds:
            self.embeds.note_stored(command.written_embeds)
        return True

    def _note_failed_part(self, member: Member) -> None:
        """Note that a part of a forward was not written, though the next one may be on its way."""
        command, request = member.command, member.request
        if request is None:
            return
        command.drop_part()
        if request is not command.forward:
            left = request.kv_len - member.start
            self.pool.note_written(request.page_ids, member.start, left, is_good=False)

    def _note_failed(self, step: Step, begins_at: float, error: EngineError) -> None:
        """What a failed batch was to write holds anything: the handles see a hole."""
        for member in step.members:
            command = member.command
            for copy in () if command.is_copied else command.copies:
                self.pool.note_lost(copy.target)
        for member in step.members:
            command = member.command
            command.num_in_steps -= 1
            if command.is_over:
                self._finish(command, self._note_too_many(member))
                continue
            self._note_part_of(command, step.number, begins_at)
            withdrawn = command.failure or _withdrawn()
            if member.is_run:
                self._note_failed_part(member)
            self._finish(command, _again(error) if member.is_run else withdrawn)

    def _note_copies(self, command: Command) -> None:
        command.is_copied = True
        if command.kind == Kind.COPY:
            for copy in command.copies:
                self.pool.note_copied_tokens(copy)
        else:
            for copy in command.copies:
                self.pool.note_copied(copy.source, copy.target)

    def _finish(
        self,
        command: Command,
        outcome: RequestResult | Exception | None,
        now: float | None = None,
    ) -> list[Command]:
        """Let a command end, at this time; return those that are ready by that.

        One that is part of a step on its way ends with that.
        """
        if command.num_in_steps:
            if not command.is_over:
                command.is_over, command.last_outcome = True, outcome
                command.take_back(self.pool)
                self._ready.pop(command, None)
            return []
        if isinstance(outcome, Exception):
            self._note_unwritten(command)
        else:
            for page in list(command.on_written):
                self._tell_written(command, page)
        if command.embeds:
            self.embeds.unpin(command.embeds)
        if now is None:
            now = trio.current_time()
        self._ready.pop(command, None)
        ready = self._order.finish(command)
        for other in ready:
            self._accept(other)
        command.tenant.last_used_at = now
        self.trace.note_command(command, outcome, now)
        try:
            command.on_done(outcome)
        except Exception:  # a bug of ours: it must not end the model for everybody
            logger.exception("the outcome of a command could not be delivered")
        return ready

    def _note_unwritten(self, command: Command) -> None:
        """Note what a command that did not end well was to write, and did not."""
        if command.kind == Kind.COPY and not command.is_copied:
            for copy in command.copies:
                self.pool.note_not_copied(copy)
        if (request := command.forward) is not None:
            left = len(request.token_ids) - command.num_run
            start = request.kv_len - left
            if left:
                self.pool.note_written(request.page_ids, start, left, is_good=False)
        if command.embeds:
            self.embeds.note_lost(command.written_embeds)


@asynccontextmanager
async def open_batcher(
    engine: Engine,
    pool: PagePool,
    embeds: EmbedPool,
    config: ControlConfig,
    *,
    max_in_flight: int,
    open_device: OpenDevice = open_device_thread,
) -> AsyncGenerator[Batcher]:
    """Batch the commands of one model for as long as the block is open.

    Args:
        engine: Runs the batches.
        pool: The model's pages.
        embeds: The model's embed slots.
        config: Limits and policies.
        max_in_flight: Most commands of an instance; decides how many may be queued.
        open_device: Opens what steps the engine.

    Raises:
        ConfigError: A policy is not known.
    """
    max_queued = config.max_instances * max_in_flight
    async with open_device(engine) as device:
        batcher = Batcher(engine, pool, embeds, config, device, max_queued=max_queued)
        device.watch(batcher.poke)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(batcher.run)
            yield batcher
            nursery.cancel_scope.cancel()


def _physical_copy(copy: PageCopy, pool: PagePool) -> PageCopy:
    return PageCopy(
        int(pool.physical[copy.source]),
        int(pool.physical[copy.target]),
        copy.source_offset,
        copy.target_offset,
        copy.count,
    )


def _again(error: EngineError) -> EngineError:
    """Return an error for one more to raise: one in two tasks mixes tracebacks up."""
    if isinstance(error, EngineLostError):
        return error.again()
    return EngineError(str(error))


def _withdrawn() -> CancelledError:
    return CancelledError("the command was withdrawn before it ran")


def _sees_hole() -> CancelledError:
    return CancelledError(
        "the command would see tokens whose own command was withdrawn or has failed: "
        "run those again first"
    )


def _stopped() -> CancelledError:
    return CancelledError("the model is no longer served: the command did not run")
