"""What tests of engines share: page lists as a control layer would keep them, greedy loops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pie_trio.engine_api import Batch, ForwardRequest, OutputSpec, PageCopy, SamplerSpec
from pie_trio.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pie_trio.engine_api import Engine, OutputResult, RequestResult

GREEDY = SamplerSpec()


class Context:
    """One sequence: its pages, and how many of their slots are in use."""

    def __init__(self, page_ids: Sequence[int], kv_len: int = 0) -> None:
        self.page_ids = np.array(page_ids, np.int32)
        self.kv_len = kv_len

    def feed(
        self,
        token_ids: Sequence[int],
        *,
        positions: Sequence[int] | None = None,
        mask: NDArray[np.bool_] | None = None,
        rows: Sequence[int] | None = (-1,),
        sampler: SamplerSpec | None = GREEDY,
        top_k: int = 0,
        input_slots: Sequence[int] | None = None,
        adapter: str = "",
        **more: Any,
    ) -> ForwardRequest:
        """Return a forward of new tokens; by default it samples greedily after the last.

        What else an output may ask for is given by its name in ``more``.
        """
        start, self.kv_len = self.kv_len, self.kv_len + len(token_ids)
        if positions is None:
            positions = range(start, self.kv_len)
        outputs: tuple[OutputSpec, ...] = ()
        if rows is not None:
            row_ids = np.array([row % len(token_ids) for row in rows], np.int32)
            outputs = (OutputSpec(row_ids, sampler, top_k, **more),)
        return ForwardRequest(
            token_ids=np.array(list(token_ids), np.int32),
            positions=np.array(positions, np.int32),
            page_ids=self.page_ids,
            kv_len=self.kv_len,
            mask=mask,
            outputs=outputs,
            input_slots=None if input_slots is None else int32(*input_slots),
            adapter=adapter,
        )

    def fork(
        self, page_ids: Sequence[int], page_size: int
    ) -> tuple[Context, list[PageCopy]]:
        """Return a context that shares full pages, and the copy of the last one's tokens."""
        num_full, num_rest = divmod(self.kv_len, page_size)
        child = Context([*self.page_ids[:num_full], *page_ids], self.kv_len)
        if not num_rest:
            return child, []
        source = int(self.page_ids[num_full])
        return child, [PageCopy(source, int(page_ids[0]), 0, 0, num_rest)]


def run(
    engine: Engine, *requests: ForwardRequest, copies: Sequence[PageCopy] = ()
) -> list[int]:
    """Execute one batch and return the last sampled token of each request."""
    batch = Batch(tuple(requests), tuple(copies))
    return [int(outputs[-1].token_ids[-1]) for outputs in execute(engine, batch)]


def execute(engine: Engine, batch: Batch) -> list[RequestResult]:
    """Execute a batch of which no request fails, and return the results of all requests."""
    result = engine.execute(batch)
    outputs: list[RequestResult] = []
    for one in (*result.forwards, *result.projections):
        if isinstance(one, EngineError):
            raise one
        outputs.append(one)
    return outputs


def first_outputs(engine: Engine, *requests: ForwardRequest) -> list[OutputResult]:
    """Execute forwards in one batch and return the first output of each."""
    return [outputs[0] for outputs in execute(engine, Batch(requests))]


def int32(*values: int) -> NDArray[np.int32]:
    """Return a vector."""
    return np.array(values, np.int32)


def generate(
    engine: Engine,
    contexts: Sequence[Context],
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    *,
    chunk_size: int | None = None,
    stagger: int = 0,
    sampler: SamplerSpec = GREEDY,
    adapter: str = "",
) -> list[list[int]]:
    """Return ``num_tokens`` tokens of each context, all of them decoded in one batch.

    Args:
        engine: Runs the steps.
        contexts: They have room for prompt and result.
        prompts: As many.
        num_tokens: To generate for each.
        chunk_size: New tokens of a prefill step at most; None for no limit.
        stagger: Context i joins in step ``i * stagger``, so that prefills meet decodes.
        sampler: The same for all.
        adapter: The same for all.
    """
    waiting = [list(prompt) for prompt in prompts]
    outputs: list[list[int]] = [[] for _ in prompts]
    step = 0
    while any(len(output) < num_tokens for output in outputs):
        active = [
            i
            for i, output in enumerate(outputs)
            if len(output) < num_tokens and step >= i * stagger
        ]
        requests: list[ForwardRequest] = []
        for i in active:
            chunk = waiting[i][:chunk_size]
            waiting[i] = waiting[i][len(chunk) :]
            requests.append(contexts[i].feed(chunk, sampler=sampler, adapter=adapter))
        for i, token_id in zip(active, run(engine, *requests), strict=True):
            if not waiting[i]:
                outputs[i].append(token_id)
                waiting[i] = [token_id]
        step += 1
    return outputs


def page_lists(
    num_contexts: int, pages_each: int, *, seed: int | None = None
) -> list[list[int]]:
    """Return disjoint page lists: in order, or shuffled among each other with a seed."""
    page_ids = np.arange(num_contexts * pages_each)
    if seed is not None:
        np.random.default_rng(seed).shuffle(page_ids)
    rows: list[list[int]] = page_ids.reshape(num_contexts, pages_each).tolist()
    return rows
