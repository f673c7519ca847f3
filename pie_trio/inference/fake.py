"""An engine and a tokenizer without torch, for tests of the layers above.

:class:`FakeEngine` is a decoder of two layers whose arithmetic is a hash. The layers write to
and read from a store of slots through the real page ids, so that wrong pages, positions, masks
or copies change the result, while the composition of a batch does not.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from pie_trio.engine_api import ChatTemplates, ModelInfo
from pie_trio.errors import BadArgumentError, EngineError
from pie_trio.inference.adapters.table import AdapterTable, WithAdapters
from pie_trio.inference.metadata import build_metadata
from pie_trio.inference.outputs import Computed, make_results, plan_outputs
from pie_trio.inference.processors import ProcessorTable, WithProcessors
from pie_trio.inference.sampler import splitmix64
from pie_trio.inference.validation import (
    check_page_data,
    check_page_ids,
    check_shapes,
    check_values,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pie_trio.engine_api import Batch, BatchResult, PageCopy
    from pie_trio.inference.grammar import GrammarVocabulary
    from pie_trio.inference.metadata import BatchMetadata
    from pie_trio.inference.outputs import OutputPlan

__all__ = ["FakeEngine", "FakeTokenizer", "fake_continuation"]

_NUM_LAYERS = 2
_BOS_TOKEN_ID, _EOS_TOKEN_ID = 256, 257
_VOCAB_SIZE = 258
_LARGEST_LOGIT = 8.0
_HIDDEN_SIZE = 4
_TRAITS = ("adapters", "allocate", "forward", "input-text", "output-text", "tokenize")


class FakeEngine(WithProcessors, WithAdapters[int]):
    """A deterministic :class:`~pie_trio.engine_api.Engine` for the tokens of FakeTokenizer.

    With ``h`` for :func:`~.sampler.splitmix64`, a token enters as ``h(embedding + position)``,
    where its embedding is ``token_id * 2**32``, or else the hidden state that was stored in its
    slot; an adapter adds a number of its own, a hash of its files. Each of two layers stores the token's number in
    its slot of the cache, and makes it ``h(number + sum of the numbers in the slots that the
    token attends to)``, all modulo 2**64. The result is the hidden state, which an output shows
    as its four 16-bit digits, lowest first, each divided by 65536. The logit of token ``v`` is
    the upper 24 bits of ``h(hidden state + v)``, scaled to [0, 8).

    Attributes:
        batch_sizes: Number of forwards of each step so far, failed ones included.
        batches: The steps themselves.
        is_closed: Whether :meth:`close` was called.
    """

    def __init__(
        self,
        *,
        name: str = "fake",
        num_pages: int = 64,
        page_size: int = 16,
        num_embeds: int = 64,
        adapters: Sequence[str] = (),
        chat_templates: Mapping[str, str] | None = None,
        broken_token_ids: Iterable[int] = (),
        failures: Mapping[int, Exception] | None = None,
        on_step: Callable[[Batch], None] | None = None,
    ) -> None:
        """Make an engine with an empty cache. It has grammars where llguidance is installed.

        Args:
            name: As in the info.
            num_pages: As in the info.
            page_size: As in the info.
            num_embeds: As in the info.
            adapters: As in the info, from the start; each gives results of its own.
            chat_templates: By name; None for none.
            broken_token_ids: A forward with one of these fails, alone, as if it had led to NaN.
            failures: What to raise in which step, counted from 0; nothing is written then.
            on_step: Called at the start of each step in the caller's thread, for example to
                wait for an event.
        """
        has_grammars = find_spec("llguidance") is not None
        super().__init__(
            ProcessorTable(_VOCAB_SIZE, _make_vocabulary if has_grammars else None)
        )
        self._adapters = AdapterTable[int]()
        for adapter in adapters:
            digest = hashlib.sha256(adapter.encode()).digest()
            self._adapters.add(adapter, digest, _adapter_number(digest))
        self._info = ModelInfo(
            name=name,
            architecture="FakeForCausalLM",
            traits=(*_TRAITS, *self._processors.traits),
            vocab_size=_VOCAB_SIZE,
            max_positions=2048,
            bos_token_id=_BOS_TOKEN_ID,
            eos_token_ids=(_EOS_TOKEN_ID,),
            prompt_template=(chat_templates or {}).get("default", ""),
            chat=ChatTemplates(
                chat_templates or {}, {"bos_token": "<bos>", "eos_token": "<eos>"}
            ),
            page_size=page_size,
            num_pages=num_pages,
            page_bytes=_NUM_LAYERS * page_size * 8,
            hidden_size=_HIDDEN_SIZE,
            num_embeds=num_embeds,
            adapters=tuple(adapters),
        )
        self._store = np.zeros((_NUM_LAYERS, num_pages * page_size), np.uint64)
        self._embeds = np.zeros(num_embeds, np.uint64)
        self._broken_token_ids = np.array(list(broken_token_ids), np.int32)
        self._failures = dict(failures or {})
        self._on_step = on_step
        self.batches: list[Batch] = []
        self.is_closed = False

    @property
    def info(self) -> ModelInfo:
        """What the model is; constant but for its adapters."""
        return self._info

    @property
    def batch_sizes(self) -> list[int]:
        """Number of forwards of each step so far."""
        return [len(batch.forwards) for batch in self.batches]

    def execute(self, batch: Batch) -> BatchResult:
        """Run one step: see :meth:`pie_trio.engine_api.Engine.execute`.

        Raises:
            EngineError: The engine is closed, or a request is impossible.
        """
        with self._adapters.use(batch.forwards) as adapters:
            return self._execute(batch, adapters or {})

    def _execute(self, batch: Batch, adapters: Mapping[str, int]) -> BatchResult:
        self._check_open()
        step = len(self.batches)
        self.batches.append(batch)
        if self._on_step is not None:
            self._on_step(batch)
        if step in self._failures:
            raise self._failures[step]
        check_shapes(batch, self._info)
        metadata = build_metadata(batch, self._info.page_size)
        plan = plan_outputs(batch, metadata)
        check_values(metadata, plan, self._info)
        with self._processors.prepare(plan) as prepared:
            for copy in batch.copies:
                self._copy(copy)
            numbers = self._run_layers(batch, metadata, adapters)
            states = np.concatenate((numbers, self._embeds[plan.project_slots]))
            self._embeds[plan.store_slots] = states[plan.store_rows]
            is_broken = np.isin(metadata.token_ids, self._broken_token_ids)
            found = Computed(
                self.make_logits(batch, metadata, plan, states),
                _digits(states[plan.hidden_rows]),
                plan.requests_of_states(np.flatnonzero(is_broken).tolist()),
            )
            return make_results(batch, plan, found, prepared=prepared)

    def make_logits(
        self,
        _batch: Batch,
        _metadata: BatchMetadata,
        plan: OutputPlan,
        states: NDArray[np.uint64],
    ) -> NDArray[np.float32]:
        """Return ``[num_head_rows, vocab_size]`` float32; an engine of another kind overrides it."""
        return _logits(states[plan.head_rows])

    def store_tokens(
        self, slots: NDArray[np.int32], token_ids: NDArray[np.int32]
    ) -> None:
        """Store the embeddings of tokens as if they were hidden states; for tests and tools.

        An input slot that holds one acts as the token itself.
        """
        self._embeds[slots] = _embeddings(token_ids)

    def read_adapter(self, directory: Path | str, digest: bytes) -> int:
        """Return what an adapter adds to an embedding; any two files are one."""
        self._check_open()
        return _adapter_number(digest)

    def read_pages(self, page_ids: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Return the bytes of pages: see :meth:`pie_trio.engine_api.Engine.read_pages`.

        Raises:
            EngineError: The engine is closed, or there is no such page.
        """
        self._check_open()
        check_page_ids(page_ids, self._info)
        pages = np.moveaxis(self._pages()[:, page_ids], 0, 1)  # [P, L, page_size]
        flat = np.ascontiguousarray(pages).view(np.uint8)
        return flat.reshape(len(page_ids), self._info.page_bytes)

    def write_pages(self, page_ids: NDArray[np.int32], data: NDArray[np.uint8]) -> None:
        """Put pages back: see :meth:`pie_trio.engine_api.Engine.write_pages`.

        Raises:
            EngineError: The engine is closed, there is no such page, one occurs twice, or the
                data do not fit.
        """
        self._check_open()
        check_page_data(page_ids, data, self._info)
        numbers = np.ascontiguousarray(data).view(np.uint64)
        shape = (len(page_ids), _NUM_LAYERS, self._info.page_size)
        self._pages()[:, page_ids] = np.moveaxis(numbers.reshape(shape), 0, 1)

    def close(self) -> None:
        """Refuse further steps. Idempotent."""
        self.is_closed = True
        self._processors.close()

    def _check_open(self) -> None:
        if self.is_closed:
            raise EngineError(
                f"the engine of {self._info.name} is closed: open it again"
            )

    def _pages(self) -> NDArray[np.uint64]:
        """Return the store as ``[num_layers, num_pages, page_size]``, the same memory."""
        return self._store.reshape(_NUM_LAYERS, -1, self._info.page_size)

    def _run_layers(
        self, batch: Batch, metadata: BatchMetadata, adapters: Mapping[str, int]
    ) -> NDArray[np.uint64]:
        embeddings = _embeddings(metadata.token_ids)
        embeddings[metadata.embed_rows] = self._embeds[metadata.embed_slots]
        added = [adapters[f.adapter] if f.adapter else 0 for f in batch.forwards]
        embeddings += np.array(added, np.uint64).repeat(metadata.query_lens)
        numbers = _enter(embeddings, metadata.positions)
        for layer in self._store:
            layer[metadata.write_slots] = numbers
            numbers = splitmix64(numbers + _attended_sums(layer, batch, metadata))
        return numbers

    def _copy(self, copy: PageCopy) -> None:
        source = copy.source * self._info.page_size + copy.source_offset
        target = copy.target * self._info.page_size + copy.target_offset
        tokens = self._store[:, source : source + copy.count].copy()
        self._store[:, target : target + copy.count] = tokens


class FakeTokenizer:
    """One token a byte, then a token for the beginning (256) and one for the end (257)."""

    def encode(self, text: str, *, add_special_tokens: bool) -> NDArray[np.int32]:
        """Return ``[num_tokens]`` int32."""
        start = [_BOS_TOKEN_ID] if add_special_tokens else []
        return np.array([*start, *text.encode()], np.int32)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Return the text; bytes that are no whole UTF-8 character become U+FFFD.

        Raises:
            BadArgumentError: An id is not in ``[0, 258)``.
        """
        vocabulary = self.vocabulary()
        for token_id in token_ids:
            if not 0 <= token_id < _VOCAB_SIZE:
                raise BadArgumentError(
                    f"a token id should be in [0, {_VOCAB_SIZE}), but one is {token_id}"
                )
        shown = [i for i in token_ids if i < _BOS_TOKEN_ID or not skip_special_tokens]
        return b"".join(vocabulary[i] for i in shown).decode(errors="replace")

    def vocabulary(self) -> tuple[bytes, ...]:
        """Return the bytes of each token id."""
        return (*(bytes([byte]) for byte in range(256)), b"<bos>", b"<eos>")


def _make_vocabulary() -> GrammarVocabulary:
    from pie_trio.inference.grammar import GrammarVocabulary

    tokens = [bytes([byte]) for byte in range(256)]
    return GrammarVocabulary([*tokens, b"", b""], eos_token_ids=[_EOS_TOKEN_ID])


def fake_continuation(token_ids: Sequence[int], num_tokens: int) -> list[int]:
    """Return what greedy decoding on a :class:`FakeEngine` must give, computed without pages.

    Args:
        token_ids: The prompt, at the positions 0, 1, 2, ...
        num_tokens: How many tokens to append.
    """
    context = list(token_ids)
    for _ in range(num_tokens):
        positions = np.arange(len(context), dtype=np.int32)
        numbers = _enter(_embeddings(np.array(context, np.int32)), positions)
        for _ in range(_NUM_LAYERS):
            numbers = splitmix64(numbers + np.cumsum(numbers, dtype=np.uint64))
        context.append(int(np.argmax(_logits(numbers[-1:]))))
    return context[len(token_ids) :]


def _embeddings(token_ids: NDArray[np.int32]) -> NDArray[np.uint64]:
    return token_ids.astype(np.uint64) << np.uint64(32)


def _enter(
    embeddings: NDArray[np.uint64], positions: NDArray[np.int32]
) -> NDArray[np.uint64]:
    return splitmix64(embeddings + positions.astype(np.uint64))


def _adapter_number(digest: bytes) -> int:
    """Return what an adapter adds to an embedding."""
    return int.from_bytes(digest[:8])


def _attended_sums(
    layer: NDArray[np.uint64], batch: Batch, metadata: BatchMetadata
) -> NDArray[np.uint64]:
    """Return ``[num_tokens]`` uint64, modulo 2**64."""
    sums: list[NDArray[np.uint64]] = []
    for index, request in enumerate(batch.forwards):
        num_tokens, kv_len = len(request.token_ids), request.kv_len
        mask = request.mask
        if mask is None:
            mask = np.tri(num_tokens, kv_len, kv_len - num_tokens, dtype=np.bool_)
        stored = layer[metadata.context_slots(np.array([index]))[0]]  # [S]
        sums.append(np.where(mask, stored, np.uint64(0)).sum(axis=1, dtype=np.uint64))
    return np.concatenate(sums) if sums else np.empty(0, np.uint64)


def _digits(numbers: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Return ``[num_rows, hidden_size]`` float32, exactly what the numbers are."""
    shifts: NDArray[np.uint64] = np.arange(0, 64, 16).astype(np.uint64)
    digits = (numbers[:, None] >> shifts) & np.uint64(0xFFFF)
    return digits.astype(np.float32) * np.float32(2.0**-16)


def _logits(numbers: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Return ``[num_rows, vocab_size]`` float32."""
    token_ids: NDArray[np.uint64] = np.arange(_VOCAB_SIZE).astype(np.uint64)
    hashed = splitmix64(np.add.outer(numbers, token_ids))  # [R, V]
    unit = (hashed >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
    return unit * np.float32(_LARGEST_LOGIT)
