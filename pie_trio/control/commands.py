"""Commands, and in which order they may run.

A command waits for the commands before it whose effects it must see: the last unfinished writer
of each page or embed that it uses, and the unfinished users of each one that it writes.
Commands that wait for nothing are *ready*; two ready commands never touch the same page in
conflict, so any of them may share a batch. This keeps the commands of a queue in order, and those
of several queues wherever they meet in a page, and lets everything else run side by side.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pie_trio.engine_api import (
    NO_SLOT,
    ForwardRequest,
    OutputResult,
    OutputSpec,
    PageCopy,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from pie_trio.control.pages import PageIds, PagePool
    from pie_trio.control.tenants import Tenant
    from pie_trio.engine_api import ProjectRequest, RequestResult

__all__ = [
    "NO_PAGES",
    "Command",
    "CommandOrder",
    "Kind",
    "Priority",
    "embed_key",
    "is_cut_causally",
]

NO_PAGES: PageIds = np.empty(0, np.intp)


class Kind(IntEnum):
    """What a command makes the device do. A batch holds commands of one kind."""

    FORWARD = 0
    PROJECT = 1
    COPY = 2


class Priority(IntEnum):
    """Of a queue: inside a batch, higher goes first."""

    LOW = 0
    NORMAL = 1
    HIGH = 2


def embed_key(slot: int) -> int:
    """Return what stands for an embed slot among the virtual pages of ``uses``."""
    return -1 - slot


class Command:
    """A call on its way through the control layer.

    Args:
        kind: What it makes the device do.
        tenant: Whose it is.
        pages: ``[n]``, the virtual pages that it uses; different ones.
        writes: Those of them that it writes, and :func:`embed_key` of the slots that it writes.
        on_done: Gets the result (of a forward or projection), None (of a copy), or the error.
            Called exactly once.
        submitted_at: On trio's clock.

    Attributes:
        forward: Of a forward: the engine's request, but with virtual pages.
        project: Of a projection.
        copies: Page copies to make before it, between virtual pages.
        embeds: Embed slots that it uses.
        num_run: Tokens of the forward that ran already, in earlier chunks.
        waiting_since: Sequence number of the time when it was submitted, or of when its latest
            chunk ran.
        num_blockers: Unfinished commands that it waits for; 0 means ready.
        dependents: Commands that wait for it.
        bound_at: At which :attr:`PagePool.num_moves` all its pages were on the device.
        failure: Why it cannot run, if that is so.
        is_accepted: It is, or was, among the ready ones.
        is_copied: Its copies were made.
        is_wanted: Of a copy, by the page that it writes: ``[page_size]`` bool, the slots that
            were to hold something when it was submitted. Others may be asked to write later.
        is_paused: It waits for its reader: unfinished, but not ready.
        on_withdrawn: Called by :meth:`withdraw`.
        on_written: By page that it writes, what to call once it has; see
            :meth:`CommandOrder.when_written`.
        is_withdrawn: Nobody wants it any more: it finishes without running. Its copies are
            still made where a handle stands for one of them.
        num_in_steps: Steps on their way that it is part of: 2 if it follows itself.
        is_over: It has ended with ``last_outcome``, but for a step that it followed itself in.
    """

    goes_on: ClassVar[bool] = False
    """After its step it runs again by itself, as a decode stream does."""

    __slots__ = (
        "batch",
        "batched_at",
        "bound_at",
        "copies",
        "dependents",
        "embeds",
        "failure",
        "forward",
        "is_accepted",
        "is_copied",
        "is_finished",
        "is_over",
        "is_paused",
        "is_wanted",
        "is_withdrawn",
        "kind",
        "last_outcome",
        "num_blockers",
        "num_in_steps",
        "num_passed",
        "num_run",
        "on_done",
        "on_withdrawn",
        "on_written",
        "pages",
        "parts",
        "priority",
        "project",
        "queue",
        "sequence",
        "started_at",
        "submitted_at",
        "tenant",
        "ticket",
        "uses",
        "waiting_since",
        "writes",
    )

    def __init__(
        self,
        kind: Kind,
        tenant: Tenant,
        *,
        pages: PageIds,
        writes: Iterable[int],
        on_done: Callable[[RequestResult | Exception | None], None],
        submitted_at: float,
        forward: ForwardRequest | None = None,
        project: ProjectRequest | None = None,
        copies: tuple[PageCopy, ...] = (),
        embeds: tuple[int, ...] = (),
        priority: Priority = Priority.NORMAL,
        queue: int = 0,
        ticket: int = 0,
    ) -> None:
        self.kind, self.tenant = kind, tenant
        self.pages, self.embeds = pages, embeds
        self.writes = frozenset(writes)
        uses = set(pages.tolist())
        if embeds:
            uses.update(map(embed_key, embeds))
        self.uses = uses
        self.on_done = on_done
        self.submitted_at = submitted_at
        self.forward, self.project, self.copies = forward, project, copies
        self.priority, self.queue, self.ticket = priority, queue, ticket
        self.sequence = self.waiting_since = 0
        self.num_run = self.num_passed = 0
        self.parts: list[tuple[list[int], RequestResult]] = []
        self.num_blockers = 0
        self.bound_at = -1
        self.dependents: list[Command] = []
        self.is_withdrawn = self.is_finished = self.is_copied = False
        self.is_accepted = False
        self.is_paused = False
        self.is_wanted: dict[int, NDArray[np.bool_]] = {}
        self.on_withdrawn: Callable[[], None] = _do_nothing
        self.on_written: dict[int, Callable[[], None]] = {}
        self.failure: Exception | None = None
        self.num_in_steps, self.is_over = 0, False
        self.last_outcome: RequestResult | Exception | None = None
        self.batched_at = self.started_at = 0.0
        self.batch = 0

    @property
    def read_embeds(self) -> list[int]:
        """Embed slots that it reads; it may write some of them too."""
        if self.project is not None:
            slots: list[int] = self.project.slots.tolist()
            return slots
        if self.forward is None or self.forward.input_slots is None:
            return []
        return [slot for slot in self.forward.input_slots.tolist() if slot != NO_SLOT]

    @property
    def written_embeds(self) -> list[int]:
        """Embed slots that it writes."""
        return [slot for slot in self.embeds if embed_key(slot) in self.writes]

    @property
    def num_tokens(self) -> int:
        """Tokens that are still to run; 1 for what is not a forward."""
        if self.forward is None:
            return 1
        return len(self.forward.token_ids) - self.num_run

    def withdraw(self) -> None:
        """Let it do nothing (more), unless its last part is running. It keeps its place."""
        self.is_withdrawn = True
        self.on_withdrawn()

    def sees_hole(self, pool: PagePool) -> bool:
        """Say whether it would see a slot whose own command was withdrawn, or has failed."""
        holes = pool.holes
        if not holes or holes.isdisjoint(self.uses):
            return False
        if self.forward is None:
            return self._copies_hole(pool)
        request = self.forward
        start = request.kv_len - len(request.token_ids)
        if start == 0:
            return False
        # The positions say nothing here: a copy that comes after it may have cleared them. What
        # it sees was to be written when it was submitted.
        lacks = ~pool.filled[request.page_ids]
        for copy in () if self.is_copied else self.copies:  # they come before it
            lacks[request.page_ids == copy.target] = ~pool.filled[copy.source]
        earlier = lacks.reshape(-1)[:start]
        if request.mask is not None:
            earlier = earlier & request.mask[:, :start].any(axis=0)
        return bool(earlier.any())

    def _copies_hole(self, pool: PagePool) -> bool:
        lacks = {page: ~pool.filled[page] for page in self.is_wanted}
        is_copied = {page: np.zeros(pool.page_size, np.bool_) for page in lacks}
        for copy in self.copies:  # one may read what the one before has copied
            source = lacks.get(copy.source, ~pool.filled[copy.source])
            span = slice(copy.target_offset, copy.target_offset + copy.count)
            moved = slice(copy.source_offset, copy.source_offset + copy.count)
            lacks[copy.target][span] = source[moved].copy()
            is_copied[copy.target][span] = True
        return any(
            (lacks[page] & is_copied[page] & is_wanted).any()
            for page, is_wanted in self.is_wanted.items()
        )

    def cut(self, num_tokens: int, pool: PagePool) -> ForwardRequest:
        """Return the engine's request for the next ``num_tokens`` of the forward.

        All its pages have a place on the device.
        """
        request = self.forward
        assert request is not None, "only a forward is cut"
        physical = pool.physical.take(request.page_ids)
        total = len(request.token_ids)
        if num_tokens == total:
            return ForwardRequest(
                request.token_ids,
                request.positions,
                physical,
                request.kv_len,
                request.mask,
                request.outputs,
                request.input_slots,
                request.adapter,
            )
        first, end = self.num_run, self.num_run + num_tokens
        kv_len = request.kv_len - total + end
        slots = request.input_slots
        outputs = request.outputs
        return ForwardRequest(
            token_ids=request.token_ids[first:end],
            positions=request.positions[first:end],
            page_ids=physical[: -(-kv_len // pool.page_size)],
            kv_len=kv_len,
            mask=None if request.mask is None else request.mask[first:end, :kv_len],
            outputs=tuple(
                _cut_output(outputs[index], first, end)
                for index in self._outputs_within(first, end)
            ),
            input_slots=None if slots is None else slots[first:end],
            adapter=request.adapter,
        )

    def drop_part(self) -> None:
        """Forget a part that a step has run, and that has no result."""

    def take_back(self, pool: PagePool) -> None:
        """Forget what a step on its way writes that it should not have been part of."""

    def add_part(self, result: RequestResult, num_tokens: int) -> bool:
        """Keep what a chunk returned; return whether it was the last one."""
        assert self.forward is not None, "only a forward has parts"
        first, end = self.num_run, self.num_run + num_tokens
        total = len(self.forward.token_ids)
        self.num_run = end
        if num_tokens < total:
            self.parts.append((self._outputs_within(first, end), result))
        return end == total

    def outcome(self, last: RequestResult) -> RequestResult:
        """Return the results of all chunks as one; ``last`` is that of the last chunk."""
        if not self.parts:
            return last
        by_output: dict[int, list[OutputResult]] = {}
        for indices, results in self.parts:
            for index, result in zip(indices, results, strict=True):
                by_output.setdefault(index, []).append(result)
        return tuple(_join(by_output[index]) for index in sorted(by_output))

    def _outputs_within(self, first: int, end: int) -> list[int]:
        """Return the outputs that the chunk of the tokens from first to end has a part in.

        One without rows belongs to the last chunk.
        """
        assert self.forward is not None, "only a forward has outputs"
        is_last = end == len(self.forward.token_ids)
        return [
            index
            for index, spec in enumerate(self.forward.outputs)
            if _has_rows(spec, first, end) or (is_last and len(spec.rows) == 0)
        ]


class CommandOrder:
    """Knows which unfinished command last wrote each page and embed, and who uses them."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._writer: dict[int, Command] = {}
        self._unfinished: dict[Command, None] = {}

    def __len__(self) -> int:
        return len(self._unfinished)

    def __iter__(self) -> Iterator[Command]:
        return iter(list(self._unfinished))

    def add(self, command: Command, *, beside: Command | None = None) -> None:
        """Let ``command`` come after the unfinished commands that it depends on, and pin.

        Args:
            command: A new one.
            beside: Not after this one, which has written already what ``command`` sees.
        """
        blockers: dict[Command, None] = {}
        writer = self._writer
        for key in writer.keys() & command.uses:
            blockers[writer[key]] = None
            if (
                key in command.writes
            ):  # what it was to be told of is not what will be there
                writer[key].on_written.pop(key, None)
        for key in command.writes:
            if key < 0 or self._pool.num_pins(key):
                for user in self._users(key, command.tenant):
                    blockers[user] = None
        if beside is not None:
            blockers.pop(beside, None)
        for blocker in blockers:
            blocker.dependents.append(command)
        command.num_blockers = len(blockers)
        for key in command.writes:
            writer[key] = command
        if command.kind == Kind.COPY:
            positions = self._pool.positions
            command.is_wanted = {
                copy.target: positions[copy.target] >= 0 for copy in command.copies
            }
        self._unfinished[command] = None
        command.tenant.unfinished[command] = None
        self._pool.pin(command.pages)

    def finish(self, command: Command) -> list[Command]:
        """Forget a command and unpin; return those that became ready by that."""
        command.is_finished = True
        for key in command.writes:
            if self._writer.get(key) is command:
                del self._writer[key]
        del self._unfinished[command]
        del command.tenant.unfinished[command]
        self._pool.unpin(command.pages)
        if not command.dependents:
            return []
        ready: list[Command] = []
        for dependent in command.dependents:
            dependent.num_blockers -= 1
            if dependent.num_blockers == 0 and not dependent.is_finished:
                ready.append(dependent)
        command.dependents = []
        return ready

    def add_page(self, command: Command, page: int) -> None:
        """Let an unfinished command write a new page, which nobody else knows yet; pin it."""
        command.uses.add(page)
        command.writes |= {page}
        command.pages = np.append(command.pages, page)
        command.bound_at = -1
        self._writer[page] = command
        self._pool.pin(command.pages[-1:])

    def release_pages(self, command: Command, pages: Iterable[int]) -> None:
        """Note that a command only reads these from now on: readers need not wait for it."""
        command.writes = command.writes.difference(pages)
        for page in pages:
            if self._writer.get(page) is command:
                del self._writer[page]

    def when_written(self, page: int, call: Callable[[], None]) -> None:
        """Call once the unfinished command that comes last to write a page has written it.

        At once if there is none, and never if that command fails or is withdrawn before, or if
        another one is added that writes the page. What was to be called before is not.
        """
        writer = self._writer.get(page)
        if writer is None:
            call()
        else:
            writer.on_written[page] = call

    def _users(self, key: int, tenant: Tenant) -> list[Command]:
        """Return the unfinished commands that use a page or embed.

        They are the tenant's own, but for pages that others shared until a moment ago.
        """
        own = [other for other in tenant.unfinished if key in other.uses]
        if key < 0 or len(own) == self._pool.num_pins(key):
            return own
        return [other for other in self._unfinished if key in other.uses]


def is_cut_causally(mask: NDArray[np.bool_] | None, end: int, kv_len: int) -> bool:
    """Say whether the first ``end`` tokens may run before the others.

    Args:
        mask: Of the whole forward, ``[num_tokens, kv_end]``; None for a causal one.
        end: Tokens of the first part.
        kv_len: Slots up to and with the first part.
    """
    return mask is None or not mask[:end, kv_len:].any()


def _do_nothing() -> None:
    pass


def _has_rows(spec: OutputSpec, first: int, end: int) -> bool:
    return bool(((spec.rows >= first) & (spec.rows < end)).any())


def _cut_output(spec: OutputSpec, first: int, end: int) -> OutputSpec:
    is_inside = (spec.rows >= first) & (spec.rows < end)
    return OutputSpec(
        rows=(spec.rows[is_inside] - first).astype(np.int32),
        sampler=spec.sampler,
        top_k=spec.top_k,
        logprobs=spec.logprobs,
        entropy=spec.entropy,
        logits=spec.logits,
        hidden=spec.hidden,
        store=None if spec.store is None else spec.store[is_inside],
        processor=spec.processor,
        accept_sampled=spec.accept_sampled,
    )


def _join(parts: Sequence[OutputResult]) -> OutputResult:
    """Join what the chunks of one forward returned for one output; its rows ascend."""
    return OutputResult(
        token_ids=np.concatenate([part.token_ids for part in parts]),
        top_ids=np.concatenate([part.top_ids for part in parts]),
        top_probs=np.concatenate([part.top_probs for part in parts]),
        logprobs=np.concatenate([part.logprobs for part in parts]),
        entropy=np.concatenate([part.entropy for part in parts]),
        logits=np.concatenate([part.logits for part in parts]),
        hidden=np.concatenate([part.hidden for part in parts]),
        has_ended=parts[-1].has_ended,
    )
