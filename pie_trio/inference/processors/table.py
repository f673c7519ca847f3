"""The processors of an engine, by number."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from pie_trio.engine_api import NO_PROCESSOR
from pie_trio.errors import EngineError, UnsupportedError
from pie_trio.inference.processors.changes import pack_mask
from pie_trio.inference.processors.prepared import Prepared
from pie_trio.inference.processors.processor import Processor, check_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from numpy.typing import NDArray

    from pie_trio.engine_api import ProcessorSpec
    from pie_trio.inference.grammar import GrammarVocabulary
    from pie_trio.inference.outputs import OutputPlan

__all__ = [
    "NOTHING",
    "ProcessorTable",
    "WithProcessors",
    "grammar_vocabulary",
]


class ProcessorTable:
    """The processors of one engine, by number.

    Args:
        vocab_size: Of the model.
        make_vocabulary: Makes the tokens that grammars are matched against, when the first
            one is compiled; None if the engine has no grammars.
    """

    def __init__(
        self,
        vocab_size: int,
        make_vocabulary: Callable[[], GrammarVocabulary] | None = None,
    ) -> None:
        self._vocab_size = vocab_size
        self._make_vocabulary = make_vocabulary
        self._vocabulary: GrammarVocabulary | None = None
        self._processors: dict[int, Processor] = {}
        self._adding, self._loading = threading.Lock(), threading.Lock()
        self._workers: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self._processors)

    @property
    def traits(self) -> tuple[str, ...]:
        """What an engine with this table supports."""
        return ("processors",) if self._make_vocabulary is None else _TRAITS

    def create(self, processor: int, spec: ProcessorSpec) -> None:
        """See :meth:`pie_trio.engine_api.Engine.create_processor`."""
        check_spec(spec, self._vocab_size)
        matcher = None
        if spec.grammar_kind:
            from pie_trio.inference.grammar import compile_grammar

            grammar = compile_grammar(
                spec.grammar_kind,  # type: ignore[arg-type]  # it checks the kind itself
                spec.grammar,
                self._get_vocabulary(),
            )
            matcher = grammar.matcher()
        made = Processor(spec, vocab_size=self._vocab_size, matcher=matcher)
        with self._adding:
            self._add(processor, made)

    def fork(self, source: int, targets: Sequence[int], *, is_ahead: bool) -> None:
        """See :meth:`pie_trio.engine_api.Engine.fork_processor`."""
        found = self._get(source)
        with self._adding:
            for target in targets:
                self._add(target, found.fork(is_ahead=is_ahead))

    def accept(self, processor: int, token_ids: Sequence[int]) -> int:
        """See :meth:`pie_trio.engine_api.Engine.accept_tokens`."""
        return self._get(processor).accept(token_ids)

    def roll_back(self, processor: int, count: int) -> None:
        """See :meth:`pie_trio.engine_api.Engine.roll_back`."""
        self._get(processor).roll_back(count)

    def allowed(self, processor: int) -> NDArray[np.uint32]:
        """See :meth:`pie_trio.engine_api.Engine.allowed_tokens`."""
        found = self._get(processor)
        is_allowed = found.allowed
        if is_allowed is None:
            is_allowed = np.ones(self._vocab_size, np.bool_)
        mask = pack_mask(is_allowed)
        if found.matcher is not None:
            own = np.empty_like(mask)
            found.matcher.fill_mask(own)
            mask &= own
        return mask

    def has_ended(self, processor: int) -> bool:
        """See :meth:`pie_trio.engine_api.Engine.has_ended`."""
        return self._get(processor).has_ended

    def drop(self, processors: Sequence[int]) -> None:
        """See :meth:`pie_trio.engine_api.Engine.drop_processors`."""
        for processor in processors:
            self._processors.pop(processor, None)

    def prepare(self, plan: OutputPlan) -> AbstractContextManager[Prepared | None]:
        """Begin to compute the masks of a step's rows, beside the step; leave to join.

        Raises:
            EngineError: A row names a processor that there is not.
        """
        if not plan.has_processors:
            return NOTHING
        return Prepared(plan, self._find, self._submit)

    def close(self) -> None:
        """Forget all processors, and end the thread. Idempotent."""
        self._processors.clear()
        workers, self._workers = self._workers, None
        if workers is not None:
            workers.shutdown()

    def _submit(self, call: Callable[[], None]) -> Future[None]:
        if self._workers is None:
            self._workers = ThreadPoolExecutor(1, "masks")
        return self._workers.submit(call)

    def _get_vocabulary(self) -> GrammarVocabulary:
        with self._loading:
            if self._vocabulary is None:
                if self._make_vocabulary is None:
                    raise UnsupportedError("the engine has no grammars")
                self._vocabulary = self._make_vocabulary()
            return self._vocabulary

    def _add(self, processor: int, made: Processor) -> None:
        if processor == NO_PROCESSOR or processor in self._processors:
            raise EngineError(f"processor {processor} is in use: choose another number")
        self._processors[processor] = made

    def _get(self, processor: int) -> Processor:
        found = self._find(processor)
        if found is None:
            raise EngineError(
                f"there is no processor {processor}: create it, or fork one"
            )
        return found

    def _find(self, processor: int) -> Processor | None:
        return self._processors.get(processor)


class WithProcessors:
    """The methods of an engine that are about processors.

    Args:
        processors: Of the engine.
    """

    def __init__(self, processors: ProcessorTable) -> None:
        self._processors = processors

    @property
    def num_processors(self) -> int:
        """How many there are."""
        return len(self._processors)

    def create_processor(self, processor: int, spec: ProcessorSpec) -> None:
        """See :meth:`pie_trio.engine_api.Engine.create_processor`."""
        self._processors.create(processor, spec)

    def fork_processor(
        self, source: int, targets: Sequence[int], *, is_ahead: bool = False
    ) -> None:
        """See :meth:`pie_trio.engine_api.Engine.fork_processor`."""
        self._processors.fork(source, targets, is_ahead=is_ahead)

    def accept_tokens(self, processor: int, token_ids: Sequence[int]) -> int:
        """See :meth:`pie_trio.engine_api.Engine.accept_tokens`."""
        return self._processors.accept(processor, token_ids)

    def roll_back(self, processor: int, count: int) -> None:
        """See :meth:`pie_trio.engine_api.Engine.roll_back`."""
        self._processors.roll_back(processor, count)

    def allowed_tokens(self, processor: int) -> NDArray[np.uint32]:
        """See :meth:`pie_trio.engine_api.Engine.allowed_tokens`."""
        return self._processors.allowed(processor)

    def has_ended(self, processor: int) -> bool:
        """See :meth:`pie_trio.engine_api.Engine.has_ended`."""
        return self._processors.has_ended(processor)

    def drop_processors(self, processors: Sequence[int]) -> None:
        """See :meth:`pie_trio.engine_api.Engine.drop_processors`."""
        self._processors.drop(processors)


def grammar_vocabulary(
    tokenizer_json: Path, vocab_size: int, eos_token_ids: Sequence[int]
) -> Callable[[], GrammarVocabulary] | None:
    """Return what makes a model's tokens for a :class:`ProcessorTable`.

    None where llguidance is not installed, or the model has no token that ends a text.
    """
    if find_spec("llguidance") is None or not eos_token_ids:
        return None

    def make() -> GrammarVocabulary:
        from pie_trio.inference.grammar import GrammarVocabulary

        return GrammarVocabulary.from_tokenizer(
            tokenizer_json, vocab_size, eos_token_ids
        )

    return make


_TRAITS = ("grammar", "processors")

NOTHING: AbstractContextManager[None] = nullcontext()
"""No row goes through a processor."""
