"""The rows of one step that go through processors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pie_trio.engine_api import NO_PROCESSOR
from pie_trio.errors import EngineError, GrammarError, ProcessorError
from pie_trio.inference.processors.changes import change_logits, token_masks
from pie_trio.inference.sampler import sample

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from pie_trio.engine_api import SamplerSpec
    from pie_trio.inference.outputs import OutputPlan
    from pie_trio.inference.processors.processor import Processor

__all__ = ["Prepared"]


class Prepared:
    """The rows of a step that go through processors. Made by :meth:`ProcessorTable.prepare`.

    Attributes:
        rows: ``[num_processed]``, which of the plan's rows they are.
    """

    def __init__(
        self,
        plan: OutputPlan,
        find: Callable[[int], Processor | None],
        submit: Callable[[Callable[[], None]], Future[None]],
    ) -> None:
        self.rows: list[int] = []
        self._processors: list[Processor] = []
        self._samplers: list[SamplerSpec] = []
        self._accepts: list[bool] = []
        self._positions = plan.state_positions
        accepting: set[int] = set()
        for spec, row in zip(plan.specs, plan.bounds, strict=False):
            if spec.processor == NO_PROCESSOR:
                continue
            assert spec.sampler is not None, "checked with the shapes"
            processor = find(spec.processor)
            if processor is None or spec.processor in accepting:
                what = "accepts in two rows" if processor else "does not exist"
                raise EngineError(
                    f"{plan.name_of_request(row)}: processor {spec.processor} {what}"
                )
            if spec.accept_sampled:
                accepting.add(spec.processor)
            self.rows.append(row)
            self._processors.append(processor)
            self._samplers.append(spec.sampler)
            self._accepts.append(spec.accept_sampled)
        self._positions = plan.state_positions[plan.rows[self.rows]]
        self._shares = np.ones(len(self.rows))  # of what is drawn on the host
        self._impossible: set[int] = set()
        self._masks: NDArray[np.uint32] | None = None
        self._errors: dict[int, GrammarError] = {}
        self._job: Future[None] | None = None
        if any(p.matcher is not None for p in self._processors):
            self._job = submit(self._fill_masks)

    def __enter__(self) -> Prepared:
        return self

    def __exit__(self, *_: object) -> None:
        self._join()

    @property
    def masking(self) -> list[int]:
        """Which of them do nothing but forbid tokens, so that :meth:`masks` says it all."""
        return [i for i, p in enumerate(self._processors) if p.is_mask]

    def masks(self, indices: Sequence[int]) -> NDArray[np.uint32]:
        """Return ``[len(indices), ceil(vocab_size / 32)]`` uint32, a bit for each allowed token.

        Waits for the masks of grammars.

        Args:
            indices: Of :attr:`masking`; at least one.
        """
        self._join()
        processors = [self._processors[index] for index in indices]
        own = None if self._masks is None else self._masks[indices]
        return token_masks(processors, own)

    def draw(
        self, indices: Sequence[int], logits: NDArray[np.float32]
    ) -> NDArray[np.int32]:
        """Change the logits of some, and draw.

        Args:
            indices: Which.
            logits: ``[len(indices), vocab_size]`` float32; changed.

        Returns:
            ``[len(indices)]`` int32.
        """
        self._join()
        own = [*indices]
        processors = [self._processors[index] for index in own]
        masks = None if self._masks is None else self._masks[own]
        change_logits(logits, processors, masks)
        best = logits.argmax(axis=1)
        is_impossible = ~np.isfinite(logits[np.arange(len(logits)), best])
        logits[is_impossible] = 0.0
        self.fail([own[place] for place in np.flatnonzero(is_impossible).tolist()])
        samplers = [
            _bounded(self._samplers[index], processor)
            for index, processor in zip(own, processors, strict=True)
        ]
        shares = np.ones(len(samplers))
        positions = self._positions[own]
        token_ids = sample(logits, samplers, positions, best=best, shares=shares)
        self._shares[own] = shares
        return token_ids

    def fail(self, indices: Sequence[int]) -> None:
        """Note those that no token is left for."""
        self._impossible.update(indices)

    def settle(
        self, token_ids: NDArray[np.int32], skipped: Collection[int]
    ) -> tuple[list[bool], dict[int, EngineError]]:
        """Let those accept that are to, what was drawn for them, here or on a device.

        Args:
            token_ids: ``[num_processed]`` int32.
            skipped: Whose logits are no numbers: nothing is accepted there.

        Returns:
            Whether nothing but the end can follow each; and why some, by their index, have no
            token.
        """
        self._join()
        failures: dict[int, EngineError] = {
            index: ProcessorError(f"the grammar cannot go on: {error}")
            for index, error in self._errors.items()
        }
        for index in sorted(self._impossible):
            failures.setdefault(index, _nothing_left())
        ended = [False] * len(self._processors)
        for index, processor in enumerate(self._processors):
            if index in failures or index in skipped:
                continue
            token = int(token_ids[index])
            # What is certain surprises nobody.
            if self._samplers[index].temperature > 0.0:
                processor.note_draw(token, float(self._shares[index]))
            if self._accepts[index]:
                try:
                    ended[index] = _accept(processor, token)
                except EngineError as error:
                    failures[index] = error
        return ended, failures

    def _fill_masks(self) -> None:
        from pie_trio.inference.grammar import fill_masks

        matchers = [p.matcher for p in self._processors if p.matcher is not None]
        rows = [i for i, p in enumerate(self._processors) if p.matcher is not None]
        num_words = matchers[0].vocabulary.num_mask_words
        masks = np.empty((len(matchers), num_words), np.uint32)
        try:
            fill_masks(matchers, masks)
        except GrammarError as error:
            self._errors = {rows[row]: error for row in error.rows}
        self._masks = np.empty((len(self._processors), num_words), np.uint32)
        self._masks[rows] = masks

    def _join(self) -> None:
        job, self._job = self._job, None
        if job is not None:
            job.result()


def _bounded(sampler: SamplerSpec, processor: Processor) -> SamplerSpec:
    """Let Mirostat drop what would surprise too much: see Basu et al. 2021, section 5."""
    limit = processor.surprise_limit
    smallest = 2.0**-limit if limit > 0.0 else 1.0
    if smallest <= sampler.epsilon_cutoff:
        return sampler
    return replace(sampler, epsilon_cutoff=smallest)


def _accept(processor: Processor, token: int) -> bool:
    """Let a processor accept a token that was sampled; return whether it has ended by that."""
    try:
        if not processor.accept([token]):
            raise EngineError(
                f"token {token} was sampled under a mask that allows it, but the grammar does "
                "not: this is a bug, please report it with the grammar"
            )
        return processor.has_ended
    except GrammarError as error:
        raise ProcessorError(f"the grammar cannot go on: {error}") from error


def _nothing_left() -> ProcessorError:
    return ProcessorError(
        "no token is left to sample: bias, allowed tokens and grammar exclude each other here"
    )
