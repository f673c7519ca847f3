"""A context: a sequence of tokens whose keys and values are in KV pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferlet_py._distribution import Distribution
from inferlet_py._generation import Generation
from inferlet_py._host import SamplerValues, get_host
from inferlet_py._models import Model, get_model
from inferlet_py._sampling import Sampler
from inferlet_py._tasks import wait_ticket

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

__all__ = ["Context"]

DEFAULT_TOP = 32


class Context:
    """Tokens, and the KV pages that remember them. Use as an (async) context manager.

    Tokens that were appended are *pending* until a forward takes them; one forward takes all.

    Args:
        model: Name of a model of the server; its default one without.

    Attributes:
        token_ids: Everything in the context, pending tokens included.
    """

    def __init__(self, model: str = "") -> None:
        self.token_ids: list[int] = []
        self._model = get_model(model)
        self._pages: list[int] = []
        self._num_written = 0
        self._flushes: list[int] = []  # tickets of forwards whose result nobody wants
        self._is_closed = False

    def __enter__(self) -> Context:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Context:
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def model(self) -> Model:
        """The model that the context belongs to."""
        return self._model

    @property
    def num_pages(self) -> int:
        """KV pages that the context holds, shared ones included."""
        return len(self._pages)

    def close(self) -> None:
        """Give the pages back. The context cannot be used after that."""
        if self._is_closed:
            return
        self._is_closed = True
        host = get_host()
        for ticket in self._flushes:
            host.cancel(ticket)
        if self._pages:
            host.dealloc_kvpage(self._model.queue, self._pages)
        self._pages = []

    def text(self) -> str:
        """Return the whole context as text."""
        return self._model.detokenize(self.token_ids)

    def append(self, token_ids: Iterable[int]) -> None:
        """Append tokens. The next forward takes them."""
        self._check_open()
        self.token_ids.extend(token_ids)

    async def fill(self, prompt: str | Sequence[int]) -> None:
        """Append a text, or tokens, and let the model read all of it but the last token.

        The first text of a context gets the model's own prefix (as a BOS token).
        """
        self._check_open()
        if isinstance(prompt, str):
            prompt = self._model.tokenize(prompt, special=not self.token_ids)
        self.append(prompt)
        limit = self._model.info.max_forward_tokens
        while len(self.token_ids) - self._num_written > limit:
            self._flush(self._num_written + limit)
        await self._settle_flushes()

    async def forward(
        self, token_ids: Iterable[int] = (), *, top: int = DEFAULT_TOP
    ) -> Distribution:
        """Append tokens, run the model, and return what may come next.

        Args:
            token_ids: May be empty if tokens are pending.
            top: How many of the most likely tokens to return.
        """
        self.append(token_ids)
        _, ids, probs = await self._run(None, top)
        return Distribution(ids, probs)

    async def sample(self, sampler: Sampler) -> int:
        """Run the model on the pending tokens and return the next one, which is not appended.

        A sampler without a seed draws anew at each call.
        """
        self._check_open()
        tokens, _, _ = await self._run(sampler.values(), 0)
        return tokens[0]

    def generate(
        self,
        *,
        max_tokens: int = 256,
        sampler: Sampler | None = None,
        stop: str | Sequence[str] = (),
        stop_tokens: Sequence[int] | None = None,
    ) -> Generation:
        """Let the model go on: iterate over the chunks, or await ``text()`` or ``tokens()``.

        Args:
            max_tokens: Most tokens to generate.
            sampler: How to choose them; greedy without.
            stop: Strings that end the text; they are not part of it.
            stop_tokens: Tokens that end it; the model's own end tokens without.
        """
        self._check_open()
        return Generation(
            self,
            self._run,
            max_tokens=max_tokens,
            sampler=sampler or Sampler(temperature=0.0),
            stop=[stop] if isinstance(stop, str) else stop,
            stop_tokens=self._model.info.eos_tokens
            if stop_tokens is None
            else stop_tokens,
        )

    def fork(self) -> Context:
        """Return a context with the same tokens; full pages are shared, not copied.

        What is pending, but for the last token, is sent to the model first, so that it is
        computed once for all forks.
        """
        self._check_open()
        limit = self._model.info.max_forward_tokens
        while self._num_written < len(self.token_ids) - 1:
            self._flush(min(len(self.token_ids) - 1, self._num_written + limit))
        child = Context(self._model.name)
        child.token_ids = list(self.token_ids)
        child._num_written = self._num_written
        used = self._pages[: self._pages_for(self._num_written)]
        numbers = self._model.new_page_numbers(len(used))
        get_host().fork_kvpage(self._model.queue, used, numbers)
        child._pages = numbers
        return child

    def truncate(self, length: int) -> None:
        """Forget the tokens from ``length`` on, and give back the pages that only they used.

        Raises:
            ValueError: ``length`` is negative or beyond the end.
        """
        self._check_open()
        if not 0 <= length <= len(self.token_ids):
            raise ValueError(
                f"a context of {len(self.token_ids)} tokens cannot be cut to {length}"
            )
        del self.token_ids[length:]
        # The last token is run again, since a next one is asked for.
        self._num_written = min(self._num_written, max(length - 1, 0))
        keep = self._pages_for(self._num_written)
        if dropped := self._pages[keep:]:
            get_host().dealloc_kvpage(self._model.queue, dropped)
            del self._pages[keep:]

    # ---- forwards --------------------------------------------------------------------------

    async def _run(
        self, sampler: SamplerValues | None, top: int
    ) -> tuple[Sequence[int], Sequence[int], Sequence[float]]:
        """Forward everything pending and return what the last token gives."""
        self._check_open()
        limit = self._model.info.max_forward_tokens
        while len(self.token_ids) - self._num_written > limit:
            self._flush(self._num_written + limit)
        end = len(self.token_ids)
        if end == self._num_written:
            raise ValueError(
                "there is nothing to run: fill() the context, or pass at least one token"
            )
        ticket = self._submit(end, [end - self._num_written - 1], sampler, top)
        await wait_ticket(ticket)
        result = get_host().take_forward(ticket)
        if self._flushes:
            await self._settle_flushes()
        return result

    def _flush(self, end: int) -> None:
        """Enqueue a forward up to slot ``end`` that returns nothing."""
        self._flushes.append(self._submit(end, [], None, 0))

    async def _settle_flushes(self) -> None:
        """Wait for the forwards that return nothing, and raise what went wrong in them."""
        host = get_host()
        while self._flushes:
            await wait_ticket(self._flushes[0])
            host.finish(self._flushes.pop(0))

    def _submit(
        self, end: int, outputs: list[int], sampler: SamplerValues | None, top: int
    ) -> int:
        start = self._num_written
        host, queue = get_host(), self._model.queue
        missing = self._pages_for(end) - len(self._pages)
        if missing > 0:
            numbers = self._model.new_page_numbers(missing)
            host.alloc_kvpage(queue, numbers)
            self._pages += numbers
        ticket = host.forward_text(
            queue,
            self.token_ids[start:end],
            range(start, end),
            self._pages,
            start,
            None,
            outputs,
            sampler,
            top,
        )
        self._num_written = end
        return ticket

    def _pages_for(self, num_slots: int) -> int:
        return -(-num_slots // self._model.info.kv_page_size)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError("the context is closed: its pages were given back")
