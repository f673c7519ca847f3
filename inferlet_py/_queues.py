"""The paper's calls: command queues, KV pages, embeds, distributions.

What is enqueued here runs whether or not anybody awaits it, in the order of what it reads and
writes; several branches, or several commands of one branch, share batches. ``Context`` is built
on the same calls and keeps all of this by itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from inferlet_py._checks import check_int, check_tokens
from inferlet_py._closing import Closes
from inferlet_py._distribution import Distribution
from inferlet_py._errors import BadArgumentError, HostError
from inferlet_py._host import ExportInfo, OutputValues, get_host
from inferlet_py._models import Model, get_model
from inferlet_py._tasks import wait_to_take

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from inferlet_py._host import OutputResult
    from inferlet_py._processors import Processor
    from inferlet_py._sampling import Sampler

__all__ = [
    "Command",
    "Embed",
    "KvPage",
    "Output",
    "Outputs",
    "Queue",
    "check_rows",
    "move_rows",
    "take_outputs",
]

T = TypeVar("T")
U32 = 2**32 - 1

Priority = Literal["low", "normal", "high"]


class Command(Generic[T]):
    """A command that is on its way: await it, once, for its result.

    One that is never awaited runs all the same, and its result is dropped.
    """

    def __init__(
        self,
        ticket: int,
        take: Callable[[int], T],
        queue: int,
        pages: Sequence[KvPage] = (),
    ) -> None:
        self._ticket: int | None = ticket
        self._take = take
        self._queue, self._pages = queue, pages

    def __await__(self) -> Generator[Any, Any, T]:
        return self._wait().__await__()

    def cancel(self) -> None:
        """Withdraw the command if it has not started, and drop its result."""
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            get_host().cancel(ticket)

    def __del__(self) -> None:
        if self._ticket is not None:
            try:
                get_host().release(self._ticket)
            except RuntimeError:
                return  # the run is over

    async def _wait(self) -> T:
        ticket, self._ticket = self._ticket, None
        if ticket is None:
            raise RuntimeError(
                "a command is awaited once, and not after it was cancelled"
            )
        await wait_to_take(ticket)
        try:
            return self._take(ticket)
        except HostError as error:
            error.queue, error.pages = self._queue, tuple(_numbers(self._pages))
            raise


class KvPage(Closes):
    """The keys and values of ``kv_page_size`` tokens. Made by a :class:`Queue`.

    Attributes:
        number: The handle of the page, as the host knows it.
    """

    def __init__(self, queue: Queue, number: int) -> None:
        self.number = number
        self._queue = queue
        self._is_open = True

    def close(self) -> None:
        """Give the page back; commands on their way still see it."""
        if self._is_open:
            self._is_open = False
            get_host().dealloc_kvpage(self._queue.number, [self.number])

    def __repr__(self) -> str:
        return f"<KvPage {self.number}>"


class Embed(Closes):
    """A place for one token on its way into the model, or for a hidden state out of it.

    Attributes:
        number: The handle of the embed, as the host knows it.
    """

    def __init__(self, queue: Queue, number: int) -> None:
        self.number = number
        self._queue = queue
        self._is_open = True

    def close(self) -> None:
        """Give the embed back; commands on their way still see it."""
        if self._is_open:
            self._is_open = False
            get_host().dealloc_emb(self._queue.number, [self.number])

    def __repr__(self) -> str:
        return f"<Embed {self.number}>"


@dataclass(frozen=True)
class Output:
    """What to return for some of the new tokens of a forward.

    Attributes:
        rows: Which, ascending, counted from 0; None for the last one alone.
        sampler: Sample a token for each.
        processor: What the logits go through before a token is sampled; of one row alone. It
            is not told of the token.
        top: So many of the most likely tokens for each.
        logprobs: The log-probability of each sampled token.
        entropy: Of the distribution at temperature 1, in nats.
        logits: The raw logits; needs the grant ``logits``.
        hidden: The hidden state before the final norm; needs the grant ``logits``.
    """

    rows: Sequence[int] | None = None
    sampler: Sampler | None = None
    top: int = 0
    logprobs: bool = False
    entropy: bool = False
    logits: bool = False
    hidden: bool = False
    processor: Processor | None = None

    def values(self, num_tokens: int) -> OutputValues:
        """Return what the host takes."""
        rows = [num_tokens - 1] if self.rows is None else list(self.rows)
        for row in rows:
            check_int("row", row, U32)
        check_int("top", self.top, U32)
        wanted = {
            "logprobs": self.logprobs,
            "entropy": self.entropy,
            "logits": self.logits,
            "hidden": self.hidden,
        }
        if self.processor is not None and (self.sampler is None or len(rows) != 1):
            raise BadArgumentError(
                f"an output with a processor has a sampler and one row, got {len(rows)} rows "
                f"and {self.sampler}: a processor stands in one place of a sequence"
            )
        sampler = None if self.sampler is None else self.sampler.values(self.processor)
        extras = tuple(name for name, is_wanted in wanted.items() if is_wanted)
        return OutputValues(rows, sampler, self.top, extras)


@dataclass(frozen=True)
class Outputs:
    """What an :class:`Output` returned; what was not asked for is empty.

    Attributes:
        tokens: Sampled, one a row.
        dists: One a row.
        logprobs: Of ``tokens``.
        entropy: One a row, in nats.
        logits: The whole vocabulary, one list a row.
        hidden: The hidden states, one list a row.
    """

    tokens: Sequence[int]
    dists: Sequence[Distribution]
    logprobs: Sequence[float] = ()
    entropy: Sequence[float] = ()
    logits: Sequence[Sequence[float]] = ()
    hidden: Sequence[Sequence[float]] = ()


class Queue(Closes):
    """A command queue on a model.

    Args:
        model: Name of a model of the server; its default one without.
        priority: Which commands go first inside a batch.

    Attributes:
        number: The handle of the queue, as the host knows it.
    """

    def __init__(self, model: str = "", *, priority: Priority = "normal") -> None:
        self.model: Model = get_model(model)
        self.number = self.model.new_queue()
        if priority != "normal":
            self.set_priority(priority)

    # ---- the queue itself ------------------------------------------------------------

    def synchronize(self) -> Command[None]:
        """Await it until all commands that were enqueued before it have finished."""
        host = get_host()
        return Command(host.synchronize(self.number), host.finish, self.number)

    def set_priority(self, priority: Priority) -> None:
        """Set the priority of the commands that are enqueued from now on.

        Raises:
            BadArgumentError: There is no such priority.
        """
        if priority not in ("low", "normal", "high"):
            raise BadArgumentError(
                f"a priority is low, normal or high, got {priority!r}"
            )
        get_host().set_queue_priority(self.number, priority)

    def service_id(self) -> str:
        """Return the name of what serves the queue."""
        return get_host().service_id(self.number)

    def debug_query(self, query: str) -> Any:
        """Return what the server knows of the queue, for people who debug.

        Args:
            query: ``commands``, ``pages``, ``batcher`` or ``explain``: why the latest batches
                had their sizes, in words.

        Raises:
            BadArgumentError: There is no such question.
        """
        return json.loads(get_host().debug_queue(self.number, query))

    def close(self) -> None:
        """Withdraw what has not started, and close the queue."""
        get_host().destroy_queue(self.number)

    # ---- allocate --------------------------------------------------------------------

    @property
    def kv_page_size(self) -> int:
        """Tokens in a KV page."""
        return self.model.info.kv_page_size

    def alloc_kvpages(self, count: int) -> list[KvPage]:
        """Return new pages. They take no memory before something is written to them."""
        check_int("count", count, U32)
        numbers = self.model.new_page_numbers(count)
        get_host().alloc_kvpage(self.number, numbers)
        return [KvPage(self, number) for number in numbers]

    def fork_kvpages(self, pages: Sequence[KvPage]) -> list[KvPage]:
        """Return pages with the same contents. Whoever writes one gets a copy of its own."""
        numbers = self.model.new_page_numbers(len(pages))
        get_host().fork_kvpage(self.number, _numbers(pages), numbers)
        return [KvPage(self, number) for number in numbers]

    def copy_kvpage(
        self,
        source: KvPage,
        target: KvPage,
        *,
        source_offset: int = 0,
        target_offset: int = 0,
        count: int | None = None,
    ) -> Command[None]:
        """Copy the keys and values of ``count`` tokens, a whole page without.

        Raises:
            BadArgumentError: They do not lie within one page.
        """
        count = self.kv_page_size if count is None else count
        for name, value in (
            ("source_offset", source_offset),
            ("target_offset", target_offset),
            ("count", count),
        ):
            check_int(name, value, U32)
        host = get_host()
        ticket = host.copy_kvpage(
            self.number,
            source.number,
            target.number,
            source_offset,
            target_offset,
            count,
        )
        return Command(ticket, host.finish, self.number, [source, target])

    def alloc_embs(self, count: int) -> list[Embed]:
        """Return new embeds; nothing is in them."""
        check_int("count", count, U32)
        numbers = self.model.new_embed_numbers(count)
        get_host().alloc_emb(self.number, numbers)
        return [Embed(self, number) for number in numbers]

    # ---- into the model, through it, and out -----------------------------------------

    def embed_txt(
        self, tokens: Iterable[int], positions: Iterable[int], embeds: Sequence[Embed]
    ) -> None:
        """Put tokens with their positions into embeds.

        Raises:
            BadArgumentError: The numbers differ, or one is out of range.
        """
        checked = check_tokens(tokens, self.model.info.vocab_size)
        get_host().embed_txt(
            self.number, checked, _positions(positions), _numbers(embeds)
        )

    def num_embs_needed(self, width: int, height: int) -> int:
        """Return how many embeds an image of this size takes (trait ``input-image``)."""
        return get_host().num_embs_needed(self.number, width, height)

    def embed_img(
        self, image: bytes, embeds: Sequence[Embed], *, position: int = 0
    ) -> Command[None]:
        """Put an image (PNG or JPEG) into embeds (trait ``input-image``)."""
        host = get_host()
        ticket = host.embed_img(self.number, image, position, _numbers(embeds))
        return Command(ticket, host.finish, self.number)

    def forward(
        self,
        *,
        ikv: Sequence[KvPage] = (),
        iemb: Sequence[Embed],
        okv: Sequence[KvPage] = (),
        oemb: Sequence[Embed] = (),
        mask: Sequence[Sequence[bool]] | None = None,
        adapter: str = "",
    ) -> Command[None]:
        """Run the model on embeds.

        Args:
            ikv: Pages that are attended to. One that is left out is hidden.
            iemb: What goes in.
            okv: Pages that take the new keys and values, behind what was written to them;
                without, these are not kept.
            oemb: The last of the inputs leave their hidden states here.
            mask: Which slots of ``ikv`` and then ``okv`` each input sees; without, those that
                were written with a position up to its own.
            adapter: Name of an adapter of the model (trait ``adapters``).
        """
        host = get_host()
        places = _numbers(ikv), _numbers(iemb), _numbers(okv), _numbers(oemb)
        runs = None if mask is None else [_run_lengths(row) for row in mask]
        if adapter:
            ticket = host.forward_with_adapter(self.number, adapter, *places, runs)
        else:
            ticket = host.forward(self.number, *places, runs)

        def take(ticket: int) -> None:
            host.take_forward(ticket)

        return Command(ticket, take, self.number, [*ikv, *okv])

    def forward_text(
        self,
        tokens: Iterable[int],
        *,
        pages: Sequence[KvPage],
        start: int = 0,
        positions: Iterable[int] | None = None,
        mask: Sequence[Sequence[bool]] | None = None,
        outputs: Sequence[Output] = (),
        adapter: str = "",
    ) -> Command[list[Outputs]]:
        """Embed tokens, run the model and return outputs, in one call.

        Args:
            tokens: At least one.
            pages: The context, in order.
            start: The slot of the context that the first token goes to.
            positions: One for each token; without, they count up from ``start``.
            mask: Which of the first ``start + len(tokens)`` slots each token sees.
            outputs: What to return.
            adapter: Name of an adapter of the model (trait ``adapters``).
        """
        host = get_host()
        check_int("start", start, U32)
        checked = check_tokens(tokens, self.model.info.vocab_size)
        places = range(start, start + len(checked)) if positions is None else positions
        wanted = [output.values(len(checked)) for output in outputs]
        ticket = host.forward_text(
            self.number,
            checked,
            _positions(places),
            _numbers(pages),
            start,
            None if mask is None else [_run_lengths(row) for row in mask],
            wanted,
            adapter,
        )
        return _outputs(ticket, wanted, self.number, pages)

    def get_all_adapters(self) -> list[str]:
        """Return the names of the model's adapters (trait ``adapters``)."""
        return get_host().get_all_adapters(self.number)

    def mask_kvpage(self, page: KvPage, hidden: Sequence[bool]) -> None:
        """Hide tokens of a page from forwards without a mask that are enqueued from now on.

        Args:
            page: Others who share it see it whole.
            hidden: One for each token of the page; replaces what was hidden before.
        """
        get_host().mask_kvpage(self.number, page.number, [bool(h) for h in hidden])

    def get_next_dist(self, embed: Embed, k: int = 32) -> Command[Distribution]:
        """Return the ``k`` most likely next tokens after an embed that a forward wrote."""
        check_int("k", k, U32)
        ticket = get_host().get_next_dist(self.number, embed.number, k)
        return Command(
            ticket, lambda ticket: take_outputs(ticket, [1])[0].dists[0], self.number
        )

    def project(
        self, embeds: Sequence[Embed], outputs: Sequence[Output]
    ) -> Command[list[Outputs]]:
        """Return outputs of embeds that forwards wrote; their rows count ``embeds``."""
        wanted = [output.values(len(embeds)) for output in outputs]
        ticket = get_host().project(self.number, _numbers(embeds), wanted)
        return _outputs(ticket, wanted, self.number)

    # ---- exports ---------------------------------------------------------------------

    def export_kvpages(
        self,
        pages: Sequence[KvPage],
        name: str,
        *,
        persistent: bool = False,
        permission: Literal["owner", "published"] | Sequence[str] = "owner",
        seconds_to_live: float | None = None,
        metadata: bytes = b"",
    ) -> None:
        """Offer pages under a name.

        Args:
            pages: They stay this program's own too.
            name: Replaces an export of the same owner.
            persistent: It outlives the program, but may be dropped when pages are short. What is
                known of it outlives a server too, but not its pages.
            permission: Who may import: the owner's programs, everybody (needs the grant
                ``publish``), or the programs of these users.
            seconds_to_live: When it is dropped.
            metadata: What importers shall know.

        Raises:
            FailedError: It is persistent, and the server's disk is full or locked.
        """
        allowed = permission if isinstance(permission, str) else list(permission)
        get_host().export_kvpage(
            self.number,
            _numbers(pages),
            name,
            persistent,
            allowed,
            seconds_to_live,
            metadata,
        )

    def unexport_kvpages(self, name: str) -> None:
        """Take an export back. Imports stay."""
        get_host().unexport_kvpage(self.number, name)

    def import_kvpages(self, name: str) -> list[KvPage]:
        """Return pages with the contents of an export.

        Args:
            name: Of this program's owner, or ``owner/name``.

        Raises:
            NotFoundError: There is none, or it may not be imported.
            ExportLostError: Its pages are gone with an engine or the server; ``get_export``
                still has its metadata.
        """
        numbers = self.model.new_page_numbers(self.get_export(name).num_pages)
        get_host().import_kvpage(self.number, name, numbers)
        return [KvPage(self, number) for number in numbers]

    def get_export(self, name: str) -> ExportInfo:
        """Look an export up.

        Raises:
            NotFoundError: There is none, or it may not be imported.
        """
        return get_host().get_export(self.number, name)

    def list_exports(self, prefix: str = "") -> list[ExportInfo]:
        """Return the exports that may be imported, whose names begin with ``prefix``."""
        return get_host().list_exports(self.number, prefix)


def _numbers(handles: Sequence[KvPage] | Sequence[Embed]) -> list[int]:
    return [handle.number for handle in handles]


def _positions(positions: Iterable[int]) -> list[int]:
    found = list(positions)
    for position in found:
        check_int("position", position, 2**31 - 2)
    return found


def _run_lengths(row: Sequence[bool]) -> list[int]:
    """Return lengths of runs of hidden, seen, hidden, ... slots in turn."""
    runs, is_seen = [0], False
    for value in row:
        if bool(value) != is_seen:
            runs.append(0)
            is_seen = not is_seen
        runs[-1] += 1
    return runs


def check_rows(
    wanted: Sequence[OutputValues], num_tokens: int, max_tokens: int
) -> None:
    """Raise unless a forward of the last ``max_tokens`` tokens has all rows.

    Raises:
        BadArgumentError: There is no such row, or it comes too long before the end.
    """
    for row in [row for values in wanted for row in values.rows]:
        if row >= num_tokens:
            raise BadArgumentError(f"there is no row {row} of {num_tokens} tokens")
        if row < num_tokens - max_tokens:
            raise BadArgumentError(
                f"row {row} of {num_tokens} tokens is not among the last {max_tokens}, which "
                "one forward takes: forward them in several parts"
            )


def move_rows(wanted: Sequence[OutputValues], shift: int) -> list[OutputValues]:
    """Return outputs whose rows stand further on in what is forwarded."""
    return [
        replace(values, rows=[row + shift for row in values.rows]) for values in wanted
    ]


def _outputs(
    ticket: int,
    wanted: Sequence[OutputValues],
    queue: int,
    pages: Sequence[KvPage] = (),
) -> Command[list[Outputs]]:
    num_rows = [len(values.rows) for values in wanted]
    return Command(ticket, lambda ticket: take_outputs(ticket, num_rows), queue, pages)


def take_outputs(ticket: int, num_rows: Sequence[int]) -> list[Outputs]:
    """Return the outputs of a ready forward, each with so many rows."""
    results = get_host().take_forward(ticket)
    return [_read(result, n) for result, n in zip(results, num_rows, strict=True)]


def _read(result: OutputResult, num_rows: int) -> Outputs:
    ids, probs = _rows(result.top_ids, num_rows), _rows(result.top_probs, num_rows)
    dists = [Distribution(i, p) for i, p in zip(ids, probs, strict=True)]
    extras = result.extras
    if extras is None:
        return Outputs(result.tokens, dists)
    return Outputs(
        result.tokens,
        dists,
        extras.logprobs,
        extras.entropy,
        _rows(extras.logits, num_rows),
        _rows(extras.hidden, num_rows),
    )


def _rows(values: Sequence[T], num_rows: int) -> list[Sequence[T]]:
    """Cut what the wire carries one row after the other; no rows where nothing came."""
    size = len(values) // num_rows if num_rows else 0
    return [values[i * size : (i + 1) * size] for i in range(num_rows)] if size else []
