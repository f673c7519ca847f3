"""A context: a sequence of tokens whose keys and values are in KV pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from inferlet_py._checks import check_int, check_texts, check_tokens
from inferlet_py._closing import AsyncCloses, Closes
from inferlet_py._distribution import Distribution
from inferlet_py._errors import CommandCancelledError, ExportLostError, HostError
from inferlet_py._flushes import Flush
from inferlet_py._following import LastForward, SamplerMemory, follow, take_result
from inferlet_py._generation import Generation, GenerationSource
from inferlet_py._host import OutputValues, SamplerValues, get_host
from inferlet_py._models import Model, get_model
from inferlet_py._page_lists import behind_dropped, held, renumber
from inferlet_py._processors import Grammar, Processor, choose_constraint
from inferlet_py._queues import check_rows, move_rows, take_outputs
from inferlet_py._sampling import Sampler, check_sampler
from inferlet_py._sharing import (
    import_prefix,
    pack_tokens,
    page_names,
    runs_of,
    unpack_tokens,
)
from inferlet_py._streams import HostStream
from inferlet_py._tasks import wait_to_take

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from inferlet_py._generation import StreamOptions
    from inferlet_py._host import ChunkValues, OutputResult
    from inferlet_py._queues import Output, Outputs
    from inferlet_py._relay import Relay

__all__ = ["Context"]

T = TypeVar("T")
DEFAULT_TOP = 32
MAX_U32 = 2**32 - 1
NUM_LAST_TOKENS = 8
"""Enough to know how a text goes on."""


class Context(AsyncCloses, Closes):
    """Tokens, and the KV pages that remember them. Use as an (async) context manager.

    Tokens that were appended are *pending* until a forward takes them; one forward takes all.
    If it fails or is cancelled they are pending again, and the next one repeats it.

    Args:
        model: Name of a model of the server; its default one without.
        adapter: Name of an adapter (LoRA) of the model, which all that the context runs goes
            through (trait ``adapters``); none without.

    Attributes:
        token_ids: Everything in the context, pending tokens included.
        processor: Of the generation that is going on, and stands at the end of the context. A
            fork has one of its own, to be handed to its ``generate``; the fork closes it.
        num_reused: Tokens that were not computed, since ``fill(reuse=True)`` found their pages.
    """

    def __init__(self, model: str = "", *, adapter: str = "") -> None:
        self.token_ids: list[int] = []
        self.num_reused = 0
        self._model, self._adapter = get_model(model), adapter
        self._pages: list[int] = []  # 0 where tokens were dropped
        self._num_written = 0
        # Pages, from the first on, that others can find; None before anything is shared. Of those
        # whose tokens are pending, the names by index.
        self._num_offered: int | None = None
        self._to_offer: dict[int, str] = {}
        # Whether its pages hold what its tokens alone say: not if some were computed while others
        # were hidden, or by somebody who only claims which tokens they are.
        self._is_plain = True
        self._flushes: list[Flush] = []  # in the order of their slots
        self._last: LastForward | None = None
        self._sampler_memory = SamplerMemory()
        self._hidden: frozenset[int] = frozenset()
        self._dropped_to = 0  # behind the last slot whose page was given back
        self._stream: HostStream | None = None
        self._relay: Relay | None = None  # of the stream
        self._ahead: list[int] = []  # pages after the others, for the stream
        self.processor: Processor | None = None
        self._forked_processor: Processor | None = None
        self._is_closed = False

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def model(self) -> Model:
        """The model that the context belongs to."""
        return self._model

    @property
    def adapter(self) -> str:
        """The adapter that the context runs with; "" for none."""
        return self._adapter

    @property
    def num_pages(self) -> int:
        """KV pages that the context holds, shared ones included."""
        return len(held(self._pages))

    def close(self) -> None:
        """Give the pages back. The context cannot be used after that."""
        if self._is_closed:
            return
        self._is_closed = True
        self._end_stream()
        self._release_flushes()
        if self._forked_processor is not None:
            self._forked_processor.close()
        if pages := held(self._pages):
            get_host().dealloc_kvpage(self._model.queue, pages)
        self._pages = []

    def text(self) -> str:
        """Return the whole context as text."""
        return self._model.detokenize(self.token_ids)

    def append(self, token_ids: Iterable[int]) -> None:
        """Append tokens. The next forward takes them.

        Raises:
            BadArgumentError: One is no token id of the model.
        """
        self._check_open()
        self._end_stream()
        self.token_ids += check_tokens(token_ids, self._model.info.vocab_size)

    async def fill(self, prompt: str | Sequence[int], *, reuse: bool = False) -> None:
        """Append a text, or tokens.

        Like ``append`` it runs nothing, until more than the model's
        ``max_forward_tokens`` are pending: it then runs the first of them, and waits.
        If that fails or is cancelled, all stay appended and are pending.

        The first text of a context gets the model's own prefix (as a BOS token).

        Args:
            prompt: What to append.
            reuse: Share full pages with other contexts, also of other programs of the same
                owner, that were filled in this way, begin with the same tokens and have the
                same adapter. Full pages that no other has computed yet are shared once they
                are computed, with whatever the context runs next; and what was generated since
                the last such call is shared as well.
        """
        self._check_open()
        if isinstance(prompt, str):
            prompt = self._model.tokenize(prompt, special=not self.token_ids)
        self.append(prompt)
        if reuse:
            self._reuse_prefix()
        while self._flush_surplus():
            await self._settle_flushes()

    @overload
    async def forward(
        self, token_ids: Iterable[int] = (), *, top: int = DEFAULT_TOP
    ) -> Distribution: ...

    @overload
    async def forward(
        self, token_ids: Iterable[int] = (), *, outputs: Sequence[Output]
    ) -> list[Outputs]: ...

    async def forward(
        self,
        token_ids: Iterable[int] = (),
        *,
        top: int = DEFAULT_TOP,
        outputs: Sequence[Output] | None = None,
    ) -> Distribution | list[Outputs]:
        """Append tokens, run the model, and return what may come next.

        Args:
            token_ids: May be empty; if none is pending either, the last token is run
                again.
            top: How many of the most likely tokens to return.
            outputs: Return these instead. Their rows count ``token_ids``, of which the last
                ``max_forward_tokens`` of the model may be asked for; if that is empty, row 0
                is the last token of the context.

        Raises:
            BadArgumentError: A token, a row or ``top`` is out of range.
            ValueError: The context is empty.
        """
        if outputs is not None:
            return await self._forward_rows(list(token_ids), outputs)
        check_int("top", top, MAX_U32)
        self.append(token_ids)
        result = await self._run(None, top)
        return Distribution(result.top_ids, result.top_probs)

    async def sample(
        self, sampler: Sampler, *, processor: Processor | None = None
    ) -> int:
        """Run the model on the pending tokens and return the next one, which is not appended.

        If none is pending, the last token is run again. A sampler without a seed draws
        anew at each call.

        Args:
            sampler: How to choose it.
            processor: What the logits go through before. It is not told of the token: call
                its ``accept`` for one that is taken.

        Raises:
            ValueError: The context is empty.
        """
        check_sampler(sampler)
        written, last = self._num_written, self._last
        is_next = last is not None and last.end == written < len(self.token_ids)
        values = self._sampler_memory.values(sampler, processor, is_next=is_next)
        return (await self._run(values, 0)).tokens[0]

    def generate(
        self,
        *,
        max_tokens: int = 256,
        sampler: Sampler | None = None,
        stop: str | Sequence[str] = (),
        stop_tokens: Sequence[int] | None = None,
        logprobs: bool = False,
        top_logprobs: int = 0,
        stepwise: bool = False,
        json_schema: Mapping[str, Any] | bool | str | type | None = None,
        regex: str | None = None,
        grammar: Grammar | None = None,
        processor: Processor | None = None,
    ) -> Generation:
        """Let the model go on: iterate over the chunks, or await ``text()`` or ``tokens()``.

        The tokens are sampled beside the model and read as they come, at most a few ahead.
        Whatever else uses the context ends that, and the next chunk takes it up again; so
        does leaving the loop. In the context are the tokens that were read.

        Args:
            max_tokens: Most tokens to generate.
            sampler: How to choose them; greedy without.
            stop: Strings that end the text; they are not part of it.
            stop_tokens: Tokens that end it; the model's own end tokens without.
            logprobs: Return the log-probabilities of the tokens too.
            top_logprobs: Return so many of the most likely tokens in each place too; each token
                is then sampled by a call of its own.
            stepwise: Sample each token by a call of its own. The tokens are the same, one a
                chunk.
            json_schema: The text is JSON that fits this schema, or a type, as a dataclass.
            regex: The text matches this regular expression as a whole.
            grammar: The text matches this. One that is cut off by ``max_tokens`` is only the
                beginning of what matches; ``finish_reason`` tells.
            processor: Changes the logits: penalties, a bias, a grammar. It is told what comes
                into the context, and stays open. One of these four may be given.

        Raises:
            BadArgumentError: ``max_tokens`` is negative, or no int; or more than one of the
                last four is given.
        """
        check_int("max_tokens", max_tokens)
        check_int("top_logprobs", top_logprobs, MAX_U32)
        self._check_open()
        return Generation(
            GenerationSource(
                self._model,
                self.token_ids[-NUM_LAST_TOKENS:],
                self._run,
                self.append,
                self._open_stream,
                self._read_stream,
                self._accept,
                self._end_stream,
                self._begin_processing,
                self._end_processing,
            ),
            max_tokens=max_tokens,
            sampler=Sampler(temperature=0.0)
            if sampler is None
            else check_sampler(sampler),
            stop=check_texts("stop", stop),
            stop_tokens=self._model.info.eos_tokens
            if stop_tokens is None
            else stop_tokens,
            logprobs=logprobs,
            top_logprobs=top_logprobs,
            stepwise=stepwise,
            constraint=choose_constraint(processor, grammar, regex, json_schema),
        )

    def fork(self) -> Context:
        """Return a context with the same tokens; full pages are shared, not copied.

        What is pending, but for the last token, is sent to the model first, so that it is
        computed once for all forks.
        """
        self._check_open()
        self._end_stream()
        self._flush_to(len(self.token_ids) - 1)
        child = Context(self._model.name, adapter=self._adapter)
        child.token_ids = list(self.token_ids)
        child._hidden, child._is_plain = self._hidden, self._is_plain
        child._num_written = self._num_written
        child.num_reused, child._num_offered = self.num_reused, self._num_offered
        used = self._pages[: self._pages_for(self._num_written)]
        numbers = self._model.new_page_numbers(len(held(used)))
        get_host().fork_kvpage(self._model.queue, held(used), numbers)
        child._pages, child._dropped_to = renumber(used, numbers), self._dropped_to
        child._flushes = [flush.share() for flush in self._flushes]
        if self.processor is not None and self.processor.is_open:
            child.processor = child._forked_processor = self.processor.fork()
        return child

    def mask(self, start: int, end: int, *, hidden: bool = True) -> None:
        """Hide tokens from those that come after: they are not attended to any more.

        Positions stay; forks made from now on hide the same.

        Args:
            start: The first of them.
            end: Behind the last of them.
            hidden: False shows them again.

        Raises:
            ValueError: There are no such tokens, or they are to be shown and were dropped.
        """
        self._check_open()
        check_int("start", start)
        check_int("end", end)
        if not start <= end <= len(self.token_ids):
            raise ValueError(
                f"tokens {start} to {end} of a context of {len(self.token_ids)} cannot be "
                "hidden"
            )
        if (
            not hidden
            and 0 in self._pages[start // self._page_size : self._pages_for(end)]
        ):
            raise ValueError(
                f"tokens {start} to {end} cannot be shown: the pages of some were dropped"
            )
        self._end_stream()
        self._is_plain, self._to_offer = False, {}
        self._flush_to(min(end, len(self.token_ids) - 1))
        changed = set(range(start, end))
        self._hidden = self._hidden | changed if hidden else self._hidden - changed
        self._allocate(end)
        size = self._model.info.kv_page_size
        for index in range(start // size, self._pages_for(end)):
            self._mask_page(index)

    async def drop(self, start: int, end: int) -> None:
        """Hide tokens for good, and give back the pages that held no others.

        Positions stay, and so do the tokens in ``token_ids``; forks made from now on lack the
        same. What is pending of them is sent to the model first, and waited for.

        Args:
            start: The first of them.
            end: Behind the last of them; the last token of the context cannot be dropped.

        Raises:
            ValueError: There are no such tokens.
        """
        check_int("end", end)
        if end >= len(self.token_ids):
            raise ValueError(
                f"tokens up to {end} of a context of {len(self.token_ids)} cannot be dropped: "
                "what comes next is asked of the last one"
            )
        self.mask(start, end)
        while not await self._settle_flushes():
            self._flush_to(end)
        size = self._page_size
        first, behind = -(-start // size), end // size
        if pages := held(self._pages[first:behind]):
            self._last = None
            get_host().dealloc_kvpage(self._model.queue, pages)
            self._pages[first:behind] = [0] * len(self._pages[first:behind])
            self._dropped_to = behind_dropped(self._pages) * size

    def export(
        self,
        name: str,
        *,
        persistent: bool = False,
        permission: Literal["owner", "published"] | Sequence[str] = "owner",
        seconds_to_live: float | None = None,
    ) -> None:
        """Offer the context under a name: see ``from_export``.

        What is pending, but for the last token, is sent to the model first.

        Args:
            name: Replaces an export of the same owner.
            persistent: It outlives the program, but may be dropped when pages are short. What is
                known of it outlives a server too, but not its pages.
            permission: Who may import: the owner's programs, everybody (needs the grant
                ``publish``), or the programs of these users.
            seconds_to_live: When it is dropped.

        Raises:
            ValueError: The context has fewer than two tokens.
            FailedError: It is persistent, and the server's disk is full or locked.
        """
        self._check_open()
        if len(self.token_ids) < 2:
            raise ValueError(
                "a context with fewer than two tokens has nothing to share"
            )
        self._end_stream()
        self._flush_to(len(self.token_ids) - 1)
        used = self._pages[: self._pages_for(self._num_written)]
        get_host().export_kvpage(
            self._model.queue,
            held(used),
            name,
            persistent,
            permission if isinstance(permission, str) else list(permission),
            seconds_to_live,
            pack_tokens(
                *(self.token_ids, self._num_written, self._hidden, self._adapter),
                [index for index, page in enumerate(used) if not page],
            ),
        )

    @classmethod
    def from_export(
        cls, name: str, model: str = "", *, refill: bool = False
    ) -> Context:
        """Return a context with the tokens, the pages and the adapter of an exported one.

        Args:
            name: Of this program's owner, or ``owner/name``.
            model: The model that it was exported on.
            refill: Where its pages are gone with an engine or the server, compute its tokens
                again. Whoever exports the context then gives others their pages back.

        Raises:
            NotFoundError: There is none, or it may not be imported.
            ExportLostError: Its pages are gone, and are not to be filled again.
            BadArgumentError: The export holds no context.
        """
        context = cls(model)
        queue = context._model.queue
        info = get_host().get_export(queue, name)
        found = unpack_tokens(name, info.metadata)
        token_ids, num_written, hidden, adapter, dropped = found
        numbers = context._model.new_page_numbers(info.num_pages)
        context.token_ids, context._adapter = token_ids, adapter
        context._is_plain = False
        try:
            get_host().import_kvpage(queue, name, numbers)
        except ExportLostError:
            if not refill:
                raise
            for start, end in runs_of(hidden):
                context.mask(start, end)
            return context
        context._num_written = num_written
        context._pages, context._hidden = numbers, frozenset(hidden)
        for index in dropped:  # ascending
            context._pages.insert(index, 0)
        context._dropped_to = behind_dropped(context._pages) * context._page_size
        return context

    def truncate(self, length: int) -> None:
        """Forget the tokens from ``length`` on, and give back the pages that only they used.

        Raises:
            ValueError: ``length`` is beyond the end, or the token before it was dropped.
            BadArgumentError: It is negative, or no int.
        """
        self._check_open()
        check_int("length", length)
        if length > len(self.token_ids):
            raise ValueError(
                f"a context of {len(self.token_ids)} tokens cannot be cut to {length}"
            )
        if length and 0 in self._pages[(length - 1) // self._page_size :][:1]:
            raise ValueError(
                f"the context cannot be cut to {length}: token {length - 1} was dropped, and "
                "what comes next is asked of the last one"
            )
        self._end_stream()
        self._last = None
        del self.token_ids[length:]
        # The last token is run again, since a next one is asked for.
        self._num_written = min(self._num_written, max(length - 1, 0))
        keep = self._pages_for(self._num_written)
        if self._num_offered is not None:
            size = self._model.info.kv_page_size
            self._num_offered = min(self._num_offered, length // size)
            behind = max(length - 1, 0) // size  # the last token is run, not found
            self._to_offer = {i: n for i, n in self._to_offer.items() if i < behind}
        if dropped := held(self._pages[keep:]):
            get_host().dealloc_kvpage(self._model.queue, dropped)
        del self._pages[keep:]
        self._dropped_to = behind_dropped(self._pages) * self._page_size
        if any(slot >= length for slot in self._hidden):
            self._hidden = frozenset(s for s in self._hidden if s < length)
            if held(self._pages[-1:]):
                self._mask_page(len(self._pages) - 1)

    # ---- forwards --------------------------------------------------------------------------

    async def _run(
        self, sampler: SamplerValues | None, top: int, extras: tuple[str, ...] = ()
    ) -> OutputResult:
        """Forward everything pending and return what the last token gives."""
        is_sampled_alone = sampler is not None and not (top or extras)
        return await self._run_pending(
            lambda end: self._submit_run(end, sampler, top, extras),
            lambda ticket: take_result(ticket, is_sampled_alone=is_sampled_alone),
        )

    async def _forward_rows(
        self, token_ids: list[int], outputs: Sequence[Output]
    ) -> list[Outputs]:
        """Append tokens, forward everything pending and return what some rows give."""
        num_rows = max(len(token_ids), 1)
        wanted = [output.values(num_rows) for output in outputs]
        check_rows(wanted, num_rows, self._model.info.max_forward_tokens)
        self.append(token_ids)
        first = len(self.token_ids) - num_rows

        def submit(end: int) -> int:
            self._last = None
            return self._submit(end, move_rows(wanted, first - self._num_written))

        counts = [len(values.rows) for values in wanted]
        first_row = min((row for values in wanted for row in values.rows), default=0)
        return await self._run_pending(
            submit, lambda ticket: take_outputs(ticket, counts), first + first_row
        )

    async def _run_pending(
        self,
        submit: Callable[[int], int],
        take: Callable[[int], T],
        keep: int | None = None,
    ) -> T:
        """Forward everything pending and return the result.

        Args:
            submit: Enqueues the last forward, up to a slot, and returns its ticket.
            take: Returns the result of the ready ticket.
            keep: The last forward begins at this slot or before.
        """
        while True:
            self._prepare_run(keep)
            start, end = self._num_written, len(self.token_ids)
            ticket = submit(end)
            try:
                await wait_to_take(ticket)
                result, refusal = None, None
                try:
                    result = take(ticket)
                except CommandCancelledError as error:
                    refusal = error  # for a flush that failed: its own error says more
                if self._flushes and not await self._settle_flushes():
                    continue
                if result is not None:
                    return result
                # Some token before it was not written after all, whoever was to do it.
                self._roll_back(0)
                assert refusal is not None, "or there would be a result"
                raise refusal
            except BaseException as error:
                if isinstance(error, HostError):
                    error.queue, error.pages = (
                        self._model.queue,
                        tuple(held(self._pages)),
                    )
                # The flushes before it are given up too: one may be the cause.
                self._roll_back(min([start, *(f.start for f in self._flushes)]))
                self._release_flushes()
                raise

    def _prepare_run(self, keep: int | None = None) -> None:
        """See to it that one more forward can take what is pending, and that something is."""
        self._check_open()
        self._end_stream()
        if not self.token_ids:
            raise ValueError(
                "there is nothing to run: fill() the context, or pass at least one token"
            )
        if self._num_written == len(self.token_ids):
            # What comes after the last token is asked for once more.
            self._num_written -= 1
        if self._num_written < self._dropped_to:
            raise ValueError(
                "tokens have to be computed again, since their forward failed or their pages "
                "were lost, but some before them were dropped: fill a new context"
            )
        self._find_prefix()  # others may have computed it since it was filled
        self._flush_surplus(keep)

    # ---- streams ---------------------------------------------------------------------------

    def _open_stream(self, options: StreamOptions) -> HostStream:
        self._prepare_run()
        self._last = None
        start, end = self._num_written, len(self.token_ids)
        self._allocate(end)
        num_slots = end + options.max_tokens - 1
        missing = self._pages_for(num_slots) - len(self._pages)
        if missing > 0:
            self._ahead = self._model.new_page_numbers(missing)
            get_host().alloc_kvpage(self._model.queue, self._ahead)
        pages = [*held(self._pages), *self._ahead]
        tokens, gap = self.token_ids[start:], self._gap()
        try:
            self._stream = HostStream(
                self._model, tokens, start, pages, options, self._adapter, gap
            )
        except BaseException:
            self._release_ahead()
            raise
        self._offer(end)
        return self._stream

    async def _read_stream(
        self, stream: HostStream, relay: Relay | None
    ) -> ChunkValues | None:
        """Wait for what the stream has to read; None if it is to be opened again."""
        try:
            values, refusal = None, None
            try:
                if relay is None:
                    values = await stream.read()
                else:
                    self._relay = relay
                    values = await relay.read(stream)
            except CommandCancelledError as error:
                refusal = error  # for a flush that failed: its own error says more
            if self._stream is not stream:
                return None  # another task has used the context
            if self._flushes and not await self._settle_flushes():
                self._end_stream()
                return None
            if self._stream is not stream:
                return None
            if refusal is not None:
                self._roll_back(0)
                raise refusal
        except BaseException:
            if self._stream is stream:
                self._relay = None
                if relay is None or not relay.cut(stream):
                    # Until something was read, nothing is known to be written.
                    self._roll_back(
                        min([self._num_written, *(f.start for f in self._flushes)])
                    )
                self._release_flushes()
                self._end_stream()
            raise
        self._relay = None
        return values

    def _accept(self, token_ids: Sequence[int], num_written: int) -> None:
        """Append tokens that a stream has sampled, all but the last of which it has written."""
        self.token_ids += token_ids
        self._num_written = min(num_written + self._gap(), len(self.token_ids))
        missing = self._pages_for(self._num_written) - len(self._pages)
        if missing > 0:
            self._pages += self._ahead[:missing]
            del self._ahead[:missing]

    def _begin_processing(self, processor: Processor) -> None:
        self.processor = processor

    def _end_processing(self, processor: Processor) -> None:
        if self.processor is processor:
            self.processor = None

    def _end_stream(self) -> None:
        """End the stream over the context, if there is one."""
        stream, self._stream = self._stream, None
        relay, self._relay = self._relay, None
        if stream is not None:
            if relay is not None:
                relay.cut(stream)  # the client has it, so the context has it too
            stream.close()
            self._release_ahead()

    def _release_ahead(self) -> None:
        pages, self._ahead = self._ahead, []
        if pages:
            get_host().dealloc_kvpage(self._model.queue, pages)

    # ---- pending tokens --------------------------------------------------------------------

    def _flush_surplus(self, keep: int | None = None) -> bool:
        """Enqueue forwards until one more can take what is left, from slot ``keep`` on at least.

        Returns:
            Whether any was needed.
        """
        keep = len(self.token_ids) if keep is None else keep
        limit = self._model.info.max_forward_tokens
        was_needed = len(self.token_ids) - self._num_written > limit
        while len(self.token_ids) - self._num_written > limit:
            end = min(self._num_written + limit, keep)
            if end <= self._num_written:
                break  # others append meanwhile: the host refuses what is too long
            self._flush(end)
        return was_needed

    def _flush_to(self, end: int) -> None:
        """Enqueue forwards that return nothing until slot ``end``."""
        self._find_prefix()
        limit = self._model.info.max_forward_tokens
        while self._num_written < end:
            self._flush(min(end, self._num_written + limit))

    def _reuse_prefix(self) -> None:
        """Import what others have computed, and offer them the rest once it is."""
        if not self._is_plain:
            return
        names = page_names(self.token_ids[:-1], self._page_size, self._adapter)
        first = self._num_written // self._page_size
        if self._num_offered is not None:  # what was generated since is new to others
            first = min(first, self._num_offered)
        self._num_offered = len(names)
        self._to_offer = dict(enumerate(names[first:], first))
        self._offer(self._num_written)
        self._find_prefix()

    def _find_prefix(self) -> None:
        """Import what others have computed of the pages that are pending."""
        start = len(self._pages)
        if start * self._page_size != self._num_written or start not in self._to_offer:
            return  # a page that is not full is our own
        names = list(self._to_offer.values())
        pages = import_prefix(self._model, names[:1])  # mostly there is none
        self._pages += pages
        if pages:
            rest = import_prefix(self._model, names[1:])
            self._pages += rest
            pages += rest
        for index in range(start, start + len(pages)):
            del self._to_offer[index]
        self.num_reused += len(pages) * self._page_size
        self._num_written += len(pages) * self._page_size

    def _offer(self, end: int) -> None:
        """Offer others the pages that hold tokens up to a slot, all of which are enqueued."""
        if not self._to_offer:
            return
        behind = end // self._page_size
        names = {i: name for i, name in self._to_offer.items() if i < behind}
        if names:
            for index in names:
                del self._to_offer[index]
            pages = [self._pages[index] for index in names]
            get_host().offer_prefix(self._model.queue, pages, list(names.values()))

    def _mask_page(self, index: int) -> None:
        """Tell the host which tokens of a page are hidden."""
        if not self._pages[index]:
            return  # it was dropped
        size = self._model.info.kv_page_size
        hidden = [
            slot in self._hidden for slot in range(index * size, (index + 1) * size)
        ]
        get_host().mask_kvpage(self._model.queue, self._pages[index], hidden)

    def _flush(self, end: int) -> None:
        """Enqueue a forward up to slot ``end`` that returns nothing."""
        start = self._num_written
        self._flushes.append(Flush(self._submit(end, []), start))

    async def _settle_flushes(self) -> bool:
        """Wait for the forwards that return nothing, and raise what went wrong in them.

        Returns:
            Whether all succeeded; if not, their tokens are pending again.
        """
        while self._flushes:
            flush = self._flushes.pop(0)
            is_written = False
            try:
                is_written = await flush.settle()
            finally:
                if not is_written:
                    self._roll_back(flush.start)
                    self._release_flushes()
            if not is_written:
                return False
        return True

    def _roll_back(self, slot: int) -> None:
        """Make the tokens from a slot on pending again: they were not written."""
        self._num_written = min(self._num_written, slot)
        if self._num_offered is not None:  # others do not find what they were to fill
            self._num_offered = min(self._num_offered, slot // self._page_size)

    def _release_flushes(self) -> None:
        flushes, self._flushes = self._flushes, []
        for flush in flushes:
            flush.release()

    def _submit_run(
        self, end: int, sampler: SamplerValues | None, top: int, extras: tuple[str, ...]
    ) -> int:
        """Enqueue a forward up to slot ``end`` that returns something for its last token."""
        start, output = self._num_written, (sampler, top, extras)
        self._allocate(end)
        ticket = follow(
            self._last, start, self.token_ids[start:end], self._pages, output
        )
        if ticket is None:
            ticket = self._submit(end, [OutputValues([end - start - 1], *output)])
        self._num_written = end
        self._offer(end)
        self._last = LastForward(ticket, end, len(self._pages), *output)
        return ticket

    def _submit(self, end: int, outputs: list[OutputValues]) -> int:
        start = self._num_written
        host, queue = get_host(), self._model.queue
        self._allocate(end)
        ticket = host.forward_text(
            queue,
            self.token_ids[start:end],
            list(range(start, end)),
            held(self._pages),
            start - self._gap(),
            None,
            outputs,
            self._adapter,
        )
        self._num_written = end
        self._offer(end)
        return ticket

    def _allocate(self, num_slots: int) -> None:
        """See to it that there are pages for so many slots."""
        first = len(self._pages)
        missing = self._pages_for(num_slots) - first
        if missing > 0:
            numbers = self._model.new_page_numbers(missing)
            get_host().alloc_kvpage(self._model.queue, numbers)
            self._pages += numbers
            if self._hidden:
                for index in range(first, len(self._pages)):
                    self._mask_page(index)

    def _pages_for(self, num_slots: int) -> int:
        return -(-num_slots // self._page_size)

    @property
    def _page_size(self) -> int:
        return self._model.info.kv_page_size

    def _gap(self) -> int:
        """Return by how much the host's slots are fewer: it knows nothing of dropped pages."""
        return self._pages.count(0) * self._page_size if self._dropped_to else 0

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError("the context is closed: its pages were given back")
