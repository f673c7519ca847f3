"""Random compositions of forwards, with all that a reference needs to compute them in one go."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import strategies as st

from pie_trio.engine_api import Batch, PageCopy
from tests.inference.contexts import Context

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pie_trio.engine_api import ForwardRequest
    from pie_trio.inference.engine import TorchEngine

    # Token ids, positions and ``[n, n]`` mask of a whole context to its logits.
    Reference = Callable[
        [Sequence[int], Sequence[int], NDArray[np.bool_]], NDArray[np.float64]
    ]

PAGE_SIZE, NUM_PAGES, PAGES_EACH = 4, 60, 10


@dataclass
class History:
    """A context, and all that the reference needs to compute it in one go.

    With ``sees_itself`` no mask hides a token from itself.
    """

    context: Context
    token_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    mask_rows: list[NDArray[np.bool_]] = field(default_factory=list)
    sees_itself: bool = False

    def feed(
        self,
        rng: np.random.Generator,
        num_tokens: int,
        *,
        is_masked: bool,
        max_gap: int,
    ) -> ForwardRequest:
        """Return a forward of random tokens, with an output for each."""
        start = len(self.token_ids)
        kv_len = start + num_tokens
        last = self.positions[-1] if self.positions else -1
        positions = last + np.cumsum(rng.integers(1, max_gap + 2, num_tokens))
        token_ids = rng.integers(0, 258, num_tokens)
        mask = None
        if is_masked:
            mask = rng.random((num_tokens, kv_len)) < 0.5
            seen = rng.integers(0, kv_len, num_tokens)
            if self.sees_itself:
                seen = np.arange(start, kv_len)
            mask[np.arange(num_tokens), seen] = True
        self.token_ids += token_ids.tolist()
        self.positions += positions.tolist()
        self.mask_rows += list(
            np.tri(num_tokens, kv_len, start, dtype=np.bool_) if mask is None else mask
        )
        return self.context.feed(
            token_ids.tolist(),
            positions=positions.tolist(),
            mask=mask,
            rows=range(num_tokens),
            sampler=None,
        )

    def fork(self, page_ids: list[int]) -> tuple[History, list[PageCopy]]:
        child, copies = self.context.fork(page_ids, PAGE_SIZE)
        copied = (list(self.token_ids), list(self.positions), list(self.mask_rows))
        return History(child, *copied, self.sees_itself), copies

    def expected(self, reference: Reference) -> NDArray[np.float64]:
        """Return the logits of all tokens."""
        mask = np.zeros((len(self.token_ids), len(self.token_ids)), np.bool_)
        for row, seen in enumerate(self.mask_rows):
            mask[row, : len(seen)] = seen
        return reference(self.token_ids, self.positions, mask)


@dataclass(frozen=True)
class Feed:
    num_tokens: int
    is_masked: bool
    max_gap: int


def steps(*max_gaps: int) -> st.SearchStrategy[list[list[Feed | None]]]:
    """Return what each step feeds to each of three contexts.

    None leaves one out, so that batches change.
    """
    feeds = st.builds(
        Feed, st.sampled_from([1, 1, 2, 5, 7]), st.booleans(), st.sampled_from(max_gaps)
    )
    step = st.lists(st.none() | feeds, min_size=3, max_size=3)
    return st.lists(step, min_size=1, max_size=4)


def check_composition(
    engine: TorchEngine,
    reference: Reference,
    steps: list[list[Feed | None]],
    *,
    fork_after: int,
    seed: int,
    tolerance: float,
    sees_itself: bool = False,
) -> None:
    """Feed three contexts, fork the first on the way, and compare all logits."""
    rng = np.random.default_rng(seed)
    page_ids: list[list[int]] = (
        rng.permutation(NUM_PAGES).reshape(-1, PAGES_EACH).tolist()
    )
    histories = [
        History(Context(pages), sees_itself=sees_itself) for pages in page_ids[:3]
    ]
    copies: list[PageCopy] = []
    found: list[list[NDArray[np.float32]]] = [[] for _ in histories]
    for step, feeds in enumerate(steps):
        if step == fork_after and histories[0].token_ids:
            child, copies = histories[0].fork(page_ids[4])
            histories.append(child)
            found.append(list(found[0]))
            feeds = [*feeds, Feed(3, True, 2)]
        fed = [(i, feed) for i, feed in enumerate(feeds) if feed is not None]
        if not fed:
            continue
        requests = [
            histories[i].feed(
                rng, f.num_tokens, is_masked=f.is_masked, max_gap=f.max_gap
            )
            for i, f in fed
        ]
        logits = engine.forward_logits(Batch(tuple(requests), tuple(copies)))
        copies = []
        bounds = np.cumsum([f.num_tokens for _, f in fed])[:-1]
        for (i, _), rows in zip(fed, np.split(logits, bounds), strict=True):
            found[i].append(rows)
    for history, rows_by_step in zip(histories, found, strict=True):
        if rows_by_step:
            np.testing.assert_allclose(
                np.concatenate(rows_by_step),
                history.expected(reference),
                atol=tolerance,
            )
