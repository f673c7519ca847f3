"""Decode streams: one command that samples token after token without a guest in between.

A stream begins as a forward of its new tokens. After each step it is not finished but made ready
again for the token that it has sampled, as a forward that runs in chunks is. What a token costs
here does not grow with the context: the request is the one before with another token, position
and length, the mask gets a column, and the pages are looked at where one is full.

The pages of a stream are its own until it ends: commands on them wait for it.

While a step runs, a stream may *go ahead*: it is made ready for the token that the step is about to
sample, so that the device need not wait for the host. If that token turns out to be the last one,
the next step was one too many, and what it has written is taken back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import trio

from pie_trio.control.commands import Command, Kind
from pie_trio.control.forwards import ForwardPlan, GuestForward, plan_forward
from pie_trio.control.masks import MAX_MASK_ENTRIES
from pie_trio.control.pages import UNWRITTEN
from pie_trio.control.stream_output import FinishReason, StreamOutput, Unread
from pie_trio.control.stream_rows import StreamRows
from pie_trio.engine_api import (
    NO_PROCESSOR,
    NO_REQUEST,
    ForwardRequest,
    PageCopy,
    may_follow,
)
from pie_trio.errors import BadArgumentError, CancelledError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pie_trio.control.commands import Priority
    from pie_trio.control.page_table import PageTable
    from pie_trio.control.pages import PageIds, PagePool
    from pie_trio.control.processors import Processor
    from pie_trio.control.served_model import ServedModel
    from pie_trio.control.tenants import Tenant
    from pie_trio.engine_api import RequestResult, SamplerSpec

__all__ = ["DecodeStream", "StreamOwner", "StreamRequest", "start_stream"]

MAX_POSITION = 2**31 - 1

UNKNOWN_TOKEN = np.zeros(1, np.int32)
"""Stands for one that is about to be sampled."""


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """A stream as the guest asks for it; see ``decode.wit`` for the meaning of each field."""

    token_ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    pages: list[int]
    start: int
    sampler: SamplerSpec
    max_tokens: int
    stop_tokens: frozenset[int] = frozenset()
    stop_texts: tuple[str, ...] = ()
    logprobs: bool = False
    max_unread: int = 64
    adapter: str = ""
    processor: Processor | None = None


@dataclass(frozen=True, slots=True)
class StreamOwner:
    """Whose stream it is.

    Attributes:
        table: The pages of the inferlet.
        on_started: Called before it is submitted.
        on_ended: Called once it has no command any more.
        max_mask_entries: Room for the mask of its first forward.
    """

    model: ServedModel
    tenant: Tenant
    table: PageTable
    priority: Priority
    queue: int
    on_started: Callable[[DecodeStream], None]
    on_ended: Callable[[DecodeStream], None]
    max_mask_entries: int = MAX_MASK_ENTRIES


class _Sent(NamedTuple):
    """What of a stream is part of a step on its way.

    Attributes:
        request: With virtual pages.
        num_left: Tokens of it that had not run before.
    """

    request: ForwardRequest
    num_left: int


class DecodeStream(Command):
    """A stream. Made by :func:`start_stream` and :meth:`fork`.

    Args:
        owner: Whose it is.
        handles: Of its pages, in order; there may be more than it needs.
        plan: Of its first forward.
        rest: The pages after those of the plan.
        rows: The mask of the tokens that it samples.
        output: What it has sampled.
    """

    goes_on = True

    __slots__ = (
        "_ahead",
        "_due_finish",
        "_filled",
        "_forks",
        "_handles",
        "_has_advanced",
        "_has_twins",
        "_is_ahead",
        "_is_stopping",
        "_is_taken_back",
        "_next_page",
        "_on_readable",
        "_output",
        "_owner",
        "_page",
        "_page_size",
        "_position",
        "_rest",
        "_rows",
        "_sent",
        "num_written",
    )

    def __init__(
        self,
        owner: StreamOwner,
        handles: list[int],
        plan: ForwardPlan,
        rest: list[int],
        rows: StreamRows,
        output: StreamOutput,
    ) -> None:
        super().__init__(
            Kind.FORWARD,
            owner.tenant,
            pages=plan.pages,
            writes=[*plan.writes, *rest],
            on_done=self._end,
            submitted_at=trio.current_time(),
            forward=plan.request,
            copies=plan.copies,
            priority=owner.priority,
            queue=owner.queue,
        )
        request = plan.request
        self.uses.update(rest)
        self.num_written = request.kv_len - len(request.token_ids)
        self._owner, self._handles = owner, handles
        self._rest, self._next_page = rest, 0
        self._ahead = set(rest)  # pinned beside those of `pages`, which must be bound
        whole = [*request.page_ids.tolist(), *rest]
        self._has_twins = len(set(whole)) < len(whole)
        self._page_size = owner.model.pool.page_size
        self._page = int(request.page_ids[-1])
        self._position = int(request.positions[-1])
        self._rows, self._output = rows, output
        self._is_stopping = self._has_advanced = False
        self._is_ahead = self._is_taken_back = False
        self._due_finish: FinishReason | None = None  # told once it has ended
        self._sent: deque[_Sent] = deque()
        self._filled: list[int] = []  # pages to release after the step on its way
        self._on_readable: Callable[[], object] | None = None
        self._forks: list[Callable[[Exception | None], None]] = []

    def submit(self, *, beside: Command | None = None) -> None:
        """Hand it to the batcher."""
        owner = self._owner
        owner.on_started(self)
        owner.model.batcher.submit(self, beside=beside)
        if self._ahead and not self.is_finished:
            owner.model.pool.pin(_as_pages(self._ahead))

    # ---- the reader's side ------------------------------------------------------------

    @property
    def has_ended(self) -> bool:
        """It was read to its end: there will be nothing any more."""
        return self._output.has_ended

    @property
    def has_failed(self) -> bool:
        """Nothing but an error is left to read."""
        return self._output.has_failed

    @property
    def num_left(self) -> int:
        """Most tokens that it still samples."""
        return self._output.num_left

    def when_readable(self, call: Callable[[], object]) -> None:
        """Call once there is something to read; at once if there is."""
        if self._output.is_readable:
            call()
        else:
            self._on_readable = call

    def forget_reader(self) -> None:
        """Do not call what :meth:`when_readable` was given."""
        self._on_readable = None

    def take(self) -> Unread:
        """Return what was not read yet, perhaps nothing.

        Raises:
            Exception: What the stream has failed with; once, after everything before it.
        """
        unread = self._output.take()
        if self.is_paused:
            self._owner.model.batcher.resume(self)
        return unread

    def stop(self) -> None:
        """End it after the step that is running."""
        self._is_stopping = True
        self._take_back_last()
        if not self._sent:
            self.withdraw()

    def withdraw(self) -> None:
        """End it after the step that is running, as something that nobody wants."""
        if self.is_finished:
            return
        if self.is_paused:
            self._owner.model.batcher.resume(self)
        self._take_back_last()
        super().withdraw()

    def close(self, error: Exception) -> None:
        """End it and forget what was not read; whoever waits for something gets the error."""
        self._output.abandon(error)
        self._wake_reader()
        self.withdraw()

    def _wake_reader(self) -> None:
        call, self._on_readable = self._on_readable, None
        if call is not None:
            call()

    @property
    def has_processor(self) -> bool:
        """It has a copy of a processor of its own."""
        return self._output.processor != NO_PROCESSOR

    @property
    def mask_bytes(self) -> int:
        """Of the forward that runs next."""
        request = self.forward
        assert request is not None, "a stream is a forward"
        return 0 if request.mask is None else request.mask.nbytes

    # ---- the batcher's side -----------------------------------------------------------

    def cut(self, num_tokens: int, pool: PagePool) -> ForwardRequest:
        """See :meth:`Command.cut`."""
        request = self.forward
        assert request is not None, "a stream is a forward"
        self._sent.append(_Sent(request, self.num_tokens))
        if not (self._output.num_tokens or self._has_advanced):
            return super().cut(num_tokens, pool)
        # Not before it runs: a stream that ends leaves no slot that looks unfilled.
        slot = request.kv_len - 1
        place = self._page, slot % self._page_size
        if pool.positions[place] >= 0:
            self._owner.table.changes += 1
        pool.positions[place] = self._position
        return ForwardRequest(
            request.token_ids,
            request.positions,
            pool.physical.take(request.page_ids),
            request.kv_len,
            request.mask,
            request.outputs,
            None,
            request.adapter,
            request.follows,
        )

    def look_at_owners(self) -> bool:
        """Take a copy of the page that it writes next if others were given it since a step.

        Called before it is chosen for the next one. What the first forward writes is of
        earlier than what was done since, as with any other.

        Returns:
            Whether it can be chosen: not before the step has ended in which it is, if it has to
            copy a page first or is to stop.
        """
        request = self.forward
        assert request is not None, "a stream is a forward"
        if self._is_stopping and self._sent:
            return False  # it ends with that step
        if not self._has_advanced or self.is_withdrawn:
            return True
        if self._is_shared(request.page_ids):
            if self._sent:
                return False
            page_ids = self._take_copy(request.page_ids)
            self.forward = replace(request, page_ids=page_ids)
        return True

    def may_go_ahead(self, num_tokens: int) -> bool:
        """Say whether it may be made ready for a token that a step is about to sample.

        Args:
            num_tokens: How many of its tokens are part of that step.
        """
        request = self.forward
        assert request is not None, "a stream is a forward"
        if (
            self._is_ahead
            or self._is_stopping
            or self.is_withdrawn
            or self._forks
            or self.copies
            or num_tokens < self.num_tokens
            or not self._output.may_go_on
            or not self._rows.is_whole
            or not may_follow(request.outputs)
        ):
            return False
        # In a slot that held something, that would be lost by a step too many.
        slot, size, page_ids = request.kv_len, self._page_size, request.page_ids
        pool = self._owner.model.pool
        if slot // size == len(page_ids):
            page = self._rest[self._next_page]
            # An own page, which is in no other place.
            is_own = pool.num_owners(page) == 1 and not self._has_twins
            return is_own and not (pool.positions[page] >= 0).any()
        return pool.positions[self._page, slot % size] < 0 and not self._is_shared(
            page_ids
        )

    def go_ahead(self, follows: int) -> None:
        """Be ready for the token that forward ``follows`` of the step on its way samples."""
        request = self.forward
        assert request is not None, "a stream is a forward"
        self._is_ahead = True
        self.num_run = 0
        self._advance(request, UNKNOWN_TOKEN, follows)

    def drop_part(self) -> None:
        """See :meth:`Command.drop_part`."""
        sent = self._sent.popleft()
        pool, page = self._owner.model.pool, int(sent.request.page_ids[-1])
        if self.is_over and (pool.positions[page] < 0).all():
            pool.unbind(page)  # it was entered by a step too many

    def take_back(self, pool: PagePool) -> None:
        """See :meth:`Command.take_back`: a step too many holds its pages until it has ended."""
        if not self._is_taken_back:
            for sent in self._sent:
                self._forget_slot(sent)

    def _take_back_last(self) -> None:
        """Forget the second step on its way of a stream that ends with the first one.

        At once, since whoever ends it may note next what is to be in that slot.
        """
        if len(self._sent) > 1 and not self._is_taken_back:
            self._is_taken_back = True
            self._forget_slot(self._sent[-1])

    def _forget_slot(self, sent: _Sent) -> None:
        request = sent.request
        place = request.page_ids[-1], (request.kv_len - 1) % self._page_size
        self._owner.model.pool.positions[place] = UNWRITTEN

    def add_part(self, result: RequestResult, num_tokens: int) -> bool:
        """Take the token that was sampled; return whether it was the last one."""
        output = self._output
        sent = self._sent.popleft()
        self.copies = ()
        if num_tokens < sent.num_left:  # a chunk of the first forward
            self.num_run += num_tokens
            return self.is_withdrawn
        self.num_written = sent.request.kv_len
        if self._filled:
            self._owner.model.batcher.release_pages(self, self._filled)
            self._filled = []
        sampled = result[0]
        token_id = int(sampled.token_ids[0])
        output.add(token_id, sampled.logprobs, has_ended=sampled.has_ended)
        if output.finish is None and self._is_stopping:
            output.end("stopped")
        if output.finish is not None or self.is_withdrawn:
            return self._note_last(sent)
        if (totals := self.tenant.totals) is not None:
            if not totals.has_room("tokens"):
                self.is_withdrawn, self.failure = True, totals.error("tokens")
                return self._note_last(sent)
            totals.add("tokens")
        batcher = self._owner.model.batcher
        now = batcher.last_step_at
        self._note_in_trace(sent, now)
        self.tenant.last_used_at = self.submitted_at = now
        if self._is_ahead:
            self._know_token(sampled.token_ids)
        else:
            self.num_run = 0
            self._advance(sent.request, sampled.token_ids)
        if self._forks and not self._sent:
            self._make_forks(None)
        self.is_paused = output.is_full and not self._sent
        if self._on_readable is not None:
            batcher.call_in_step(self._wake_reader)
        return False

    def _note_in_trace(self, sent: _Sent, now: float) -> None:
        forward, self.forward = self.forward, sent.request
        self._owner.model.batcher.trace.note_command(self, None, now)
        self.forward, self.started_at = forward, 0.0

    def _note_last(self, sent: _Sent) -> bool:
        """Note that nothing is sampled after what a step has returned."""
        if not self._is_ahead:
            self.num_run = len(sent.request.token_ids)
        elif self._sent:
            # Whoever has read the end counts on it that the stream holds nothing any more.
            output = self._output
            self._due_finish, output.finish = output.finish, None
        return True

    def _know_token(self, token_ids: NDArray[np.int32]) -> None:
        """Note the token that it was made ready for before it was sampled."""
        self._is_ahead = False
        request = self.forward
        assert request is not None, "a stream is a forward"
        request.token_ids, request.follows = token_ids, NO_REQUEST

    def _advance(
        self,
        before: ForwardRequest,
        token_ids: NDArray[np.int32],
        follows: int = NO_REQUEST,
    ) -> None:
        """Make the request for a token that was just sampled, or is about to be."""
        self._has_advanced = True
        slot, page_ids = before.kv_len, before.page_ids
        if len(before.token_ids) > 1 and len(page_ids) > 1:
            self._release(page_ids[:-1].tolist())
        if slot // self._page_size == len(page_ids):
            page_ids = self._enter_page(page_ids)
        if self._is_shared(page_ids):
            page_ids = self._take_copy(page_ids)
        self._position += 1
        self.forward = ForwardRequest(
            token_ids,
            np.array((self._position,), np.int32),
            page_ids,
            slot + 1,
            self._rows.next_row(slot, self._position),
            self._output.specs,
            None,
            before.adapter,
            follows,
        )

    def _release(self, pages: list[int]) -> None:
        """Let others read pages once they are full."""
        if self._is_ahead:  # the step that fills them is on its way
            self._filled += pages
        else:
            self._owner.model.batcher.release_pages(self, pages)

    def _enter_page(self, page_ids: PageIds) -> PageIds:
        self._release([self._page])
        page = self._page = self._rest[self._next_page]
        self._next_page += 1
        page_ids = np.append(page_ids, page)
        pool = self._owner.model.pool
        # From now on it has to be on the device, but for one of which there is nothing to copy.
        if not self._is_shared(page_ids) or (pool.positions[page] >= 0).any():
            self._bring_near(page)
        return page_ids

    def _bring_near(self, page: int) -> None:
        """Count a page that lay ahead among those which must be on the device."""
        self.bound_at = -1
        is_ahead = page in self._ahead
        self._ahead.discard(page)
        if page not in self.pages:
            assert is_ahead, "what is used is pinned"
            self.pages = np.append(self.pages, page)
        elif is_ahead:  # it was pinned twice: it is the source of a copy, or read too
            self._owner.model.pool.unpin(_as_pages([page]))

    def _is_shared(self, page_ids: PageIds) -> bool:
        """Say whether somebody else sees the last page, or the stream itself sees it earlier."""
        page, last = self._page, len(page_ids) - 1
        num_owners = self._owner.model.pool.num_owners(page)
        if num_owners != 1:
            is_owned = num_owners > 1
        else:
            is_owned = not self._owner.table.holds(self._handles[last], page)
        return is_owned or (self._has_twins and page in page_ids[:last])

    def _take_copy(self, page_ids: PageIds) -> PageIds:
        """Let a page of the stream's own take the place of the last one, which is shared."""
        pool, table = self._owner.model.pool, self._owner.table
        old, handle = self._page, self._handles[len(page_ids) - 1]
        new = self._page = pool.allocate()
        pool.positions[new] = pool.positions[old]
        self._owner.model.batcher.add_page(self, new)
        if table.holds(handle, old):
            table.replace(handle, new)
            pool.release(old)
        else:  # it was given back, and all owners are others
            pool.release(new)  # it lives by the pin
        if (pool.positions[old] >= 0).any():
            # What is not copied yet itself comes from where that comes from.
            source = self.copies[-1].source if self.copies else old
            copy = PageCopy(source, new, 0, 0, self._page_size)
            self.copies = (*self.copies, copy)
            self.is_copied = False
        page_ids = page_ids.copy()
        page_ids[-1] = new
        return page_ids

    def _end(self, outcome: RequestResult | Exception | None) -> None:
        """Get the outcome of the last step."""
        output, owner = self._output, self._owner
        self.is_finished = True
        self.is_paused = False
        if self._ahead and self.sequence:
            owner.model.pool.unpin(_as_pages(self._ahead))
        self._ahead = set[int]()
        if self._due_finish is not None:
            output.finish = self._due_finish
        if isinstance(outcome, Exception):
            if (
                self._is_stopping
                and isinstance(outcome, CancelledError)
                and self.failure is None
            ):
                output.end("stopped")
            else:
                output.fail(outcome)
        elif output.finish is None:
            output.fail(self.failure or CancelledError("the stream was withdrawn"))
        owner.model.processors.drop(output.processor)
        owner.on_ended(self)
        self._make_forks(BadArgumentError("the stream ended before it was forked"))
        self._wake_reader()

    # ---- forks ------------------------------------------------------------------------

    def fork(
        self,
        handles: list[int],
        sampler: SamplerSpec,
        owner: StreamOwner,
        on_done: Callable[[DecodeStream | Exception], None],
    ) -> None:
        """Let another stream go on from where this one is, after the step that is running.

        Args:
            handles: Unused numbers, as many as the stream has.
            sampler: Of the other.
            owner: As of this one.
            on_done: Gets the other one, or the reason why there is none.

        Raises:
            BadArgumentError: The numbers are in use or not as many, or the stream has ended.
        """
        if len(handles) != len(self._handles):
            raise BadArgumentError(
                f"the stream has {len(self._handles)} pages, but there are {len(handles)} "
                "numbers for those of the fork"
            )
        self._owner.table.check_unused(handles)
        if self.is_finished:
            raise BadArgumentError("the stream has ended: there is nothing to fork")

        def make(error: Exception | None) -> None:
            if error is None:
                try:
                    on_done(self._make_fork(handles, sampler, owner))
                except Exception as refusal:  # noqa: BLE001 - handed to the guest
                    on_done(refusal)
            else:
                on_done(error)

        if self._sent or not self._output.num_tokens:
            self._forks.append(make)
        else:
            make(None)

    def _make_forks(self, error: Exception | None) -> None:
        forks, self._forks = self._forks, []
        for make in forks:
            make(error)

    def _make_fork(
        self, handles: list[int], sampler: SamplerSpec, owner: StreamOwner
    ) -> DecodeStream:
        pool, table = owner.model.pool, owner.table
        table.check_unused(handles)  # time may have passed
        request = self.forward
        assert request is not None, "a stream is a forward"
        shared, num_copied = divmod(self.num_written, self._page_size)
        pages = request.page_ids[: shared + (num_copied > 0)].tolist()
        if not all(pool.num_owners(page) for page in pages[:shared]):
            raise BadArgumentError(
                "the stream cannot be forked: pages that it has filled were given back"
            )
        processor = self._output.processor
        if processor != NO_PROCESSOR:
            processor = owner.model.processors.fork(processor)
        fresh = [pool.allocate() for _ in handles[shared:]]
        for page in pages[:shared]:
            pool.share(page)
        whole = [*pages[:shared], *fresh]
        for handle, source, page in zip(handles, self._handles, whole, strict=True):
            table.add(handle, page)
            if source in table.hidden:
                table.hide(handle, table.hidden[source])
        copies: tuple[PageCopy, ...] = ()
        if num_copied:
            # The rest of it is what this stream goes on writing.
            source = self.copies[-1].source if self.copies else pages[shared]
            copies = (PageCopy(source, fresh[0], 0, 0, self._page_size),)
            copied = pool.positions[pages[shared], :num_copied]
            pool.positions[fresh[0], :num_copied] = copied
            pages[shared] = source
        page_ids = _as_pages(whole[: shared + 1])
        output = self._output.fork(sampler, processor)
        first = ForwardRequest(
            request.token_ids,
            request.positions,
            page_ids,
            request.kv_len,
            None if request.mask is None else request.mask.copy(),
            output.specs,
            None,
            request.adapter,
        )
        pool.set_positions(page_ids, self.num_written, request.positions)
        used = _as_pages({*whole[: shared + 1], *pages})
        plan = ForwardPlan(first, used, fresh[:1], copies)
        fork = DecodeStream(
            owner, handles, plan, fresh[1:], self._rows.fork(first.mask), output
        )
        fork.submit(beside=self)
        return fork


def start_stream(wanted: StreamRequest, owner: StreamOwner) -> DecodeStream:
    """Check a stream, prepare its pages, and submit it. All or nothing.

    Raises:
        InferletError: As :func:`~.forwards.plan_forward` does.
    """
    model, table, handles = owner.model, owner.table, wanted.pages
    pool, size = model.pool, model.pool.page_size
    kv_len = wanted.start + len(wanted.token_ids)
    _check(wanted, kv_len, size)
    # Its own, so that whoever reads it may leave it at any token.
    processor = wanted.processor.fork_ahead() if wanted.processor else NO_PROCESSOR
    output = StreamOutput(wanted, model.texts, processor)
    forward = GuestForward(
        wanted.token_ids,
        wanted.positions,
        handles,
        wanted.start,
        outputs=(output.first_spec,),
        adapter=wanted.adapter,
    )
    try:
        plan = plan_forward(
            forward,
            table,
            pool,
            model.info,
            model.config,
            max_mask_entries=owner.max_mask_entries,
        )
    except BaseException:
        model.processors.drop(processor)
        raise
    used = len(plan.request.page_ids)
    end = -(-(kv_len + wanted.max_tokens - 1) // size)
    rest = [table.get(handle) for handle in handles[used:end]]
    rows = StreamRows(
        pool.positions[plan.request.page_ids].reshape(-1)[:kv_len],
        int(wanted.positions[-1]) + 1,
        table.hidden_slots(handles[:end]) if table.hidden else None,
        max_slots=end * size,
    )
    stream = DecodeStream(owner, handles, plan, rest, rows, output)
    stream.submit()
    return stream


def _check(wanted: StreamRequest, kv_len: int, page_size: int) -> None:
    for name in ("max_tokens", "max_unread"):
        if getattr(wanted, name) < 1:
            raise BadArgumentError(f"{name} is at least 1 in a stream, got 0")
    needed = kv_len + wanted.max_tokens - 1
    if needed > len(wanted.pages) * page_size:
        raise BadArgumentError(
            f"a stream of {wanted.max_tokens} tokens writes up to slot {needed - 1}, but "
            f"{len(wanted.pages)} pages have only {len(wanted.pages) * page_size}: allocate "
            "and name more pages, which cost nothing before they are written"
        )
    if len(wanted.positions):
        last = int(wanted.positions[-1])
        if last + wanted.max_tokens >= MAX_POSITION:
            raise BadArgumentError(
                f"position {last + wanted.max_tokens} is not below {MAX_POSITION}, the "
                "largest position"
            )


def _as_pages(pages: Sequence[int] | set[int]) -> PageIds:
    return np.fromiter(pages, np.intp, len(pages))
