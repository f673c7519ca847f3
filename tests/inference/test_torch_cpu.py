"""Random compositions on the CPU backend against the naive reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pie_trio.engine_api import Batch, PageCopy
from pie_trio.inference.backends import torch_cpu
from pie_trio.inference.engine import TorchEngine, open_engine
from tests.inference.conftest import NUM_THREADS
from tests.inference.contexts import Context
from tests.inference.reference import reference_logits

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pie_trio.engine_api import ForwardRequest

PAGE_SIZE, NUM_PAGES, PAGES_EACH = 4, 60, 10
TOLERANCE = 2e-4


@pytest.fixture(scope="module", params=["tied", "untied"])
def directory(
    request: pytest.FixtureRequest, tiny_llama: Path, untied_llama: Path
) -> Path:
    return tiny_llama if request.param == "tied" else untied_llama


@pytest.fixture(scope="module")
def engine(directory: Path) -> TorchEngine:
    return open_engine(
        directory,
        name="m",
        num_pages=NUM_PAGES,
        page_size=PAGE_SIZE,
        num_threads=NUM_THREADS,
    ).engine


@dataclass
class History:
    """A context, and all that the reference needs to compute it in one go."""

    context: Context
    token_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    mask_rows: list[NDArray[np.bool_]] = field(default_factory=list)

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
            mask[np.arange(num_tokens), rng.integers(0, kv_len, num_tokens)] = True
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
        return History(child, *copied), copies

    def reference(self, directory: Path) -> NDArray[np.float64]:
        mask = np.zeros((len(self.token_ids), len(self.token_ids)), np.bool_)
        for row, seen in enumerate(self.mask_rows):
            mask[row, : len(seen)] = seen
        return reference_logits(directory, self.token_ids, self.positions, mask)


@dataclass(frozen=True)
class Feed:
    num_tokens: int
    is_masked: bool
    max_gap: int


FEEDS = st.builds(
    Feed, st.sampled_from([1, 1, 2, 5, 7]), st.booleans(), st.sampled_from([0, 3, 1000])
)
# A step feeds some of the contexts; None leaves one out, so that batches change.
STEPS = st.lists(
    st.lists(st.none() | FEEDS, min_size=3, max_size=3), min_size=1, max_size=4
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=STEPS, fork_after=st.integers(0, 4), seed=st.integers(0, 2**32 - 1))
def test_any_composition_gives_the_logits_of_the_reference(
    engine: TorchEngine,
    directory: Path,
    steps: list[list[Feed | None]],
    fork_after: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    page_ids: list[list[int]] = (
        rng.permutation(NUM_PAGES).reshape(-1, PAGES_EACH).tolist()
    )
    histories = [History(Context(pages)) for pages in page_ids[:3]]
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
            expected = history.reference(directory)
            np.testing.assert_allclose(
                np.concatenate(rows_by_step), expected, atol=TOLERANCE
            )


@pytest.mark.parametrize("group_bytes", [0, 2000, 1 << 30], ids=["each", "some", "all"])
@pytest.mark.parametrize("min_fill", [0.0, 0.75])
def test_decodes_are_the_same_however_they_are_grouped(
    engine: TorchEngine,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    group_bytes: int,
    min_fill: float,
) -> None:
    monkeypatch.setattr(torch_cpu, "_GROUP_KEY_BYTES", group_bytes)
    monkeypatch.setattr(torch_cpu, "_GROUP_MIN_FILL", min_fill)
    rng = np.random.default_rng(0)
    page_ids = rng.permutation(NUM_PAGES).reshape(-1, PAGES_EACH).tolist()
    histories = [History(Context(pages)) for pages in page_ids]
    lengths = [9, 30, 1, 17, 31, 8]
    prefills = [
        h.feed(rng, n, is_masked=False, max_gap=0)
        for h, n in zip(histories, lengths, strict=True)
    ]
    engine.forward_logits(Batch(tuple(prefills)))
    decodes = [
        h.feed(rng, 1, is_masked=i % 3 == 1, max_gap=1) for i, h in enumerate(histories)
    ]
    logits = engine.forward_logits(Batch(tuple(decodes)))
    expected = [history.reference(directory)[-1] for history in histories]
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE)


def test_only_the_asked_rows_go_through_the_head(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[torch.Size] = []
    linear = torch.nn.functional.linear

    def record(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        shapes.append(inputs.shape)
        return linear(inputs, weight)

    monkeypatch.setattr(torch.nn.functional, "linear", record)
    requests = (
        Context([0, 1]).feed(range(8), rows=[7, 2]),
        Context([2, 3]).feed(range(5), rows=None),
    )
    logits = engine.forward_logits(Batch(requests))
    assert logits.shape == (2, 258)
    assert shapes[-1][0] == 2
    assert {shape[0] for shape in shapes[:-1]} == {13}  # the whole ragged batch at once


def test_a_long_context_takes_more_than_one_block_of_the_kernel(
    tiny_llama: Path,
) -> None:
    engine = open_engine(
        tiny_llama, name="m", num_pages=1, page_size=1400, num_threads=NUM_THREADS
    ).engine
    rng = np.random.default_rng(1)
    history = History(Context([0]))
    found = [
        engine.forward_logits(
            Batch((history.feed(rng, num_tokens, is_masked=is_masked, max_gap=0),))
        )
        for num_tokens, is_masked in [(1200, False), (100, True), (1, False), (1, True)]
    ]
    expected = history.reference(tiny_llama)
    np.testing.assert_allclose(np.concatenate(found), expected, atol=TOLERANCE)
