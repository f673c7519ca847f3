"""Common beginnings that are read once, over the fake library: the results stay the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from pie_trio.engine_api import Batch
from pie_trio.inference.engine import TorchEngine, open_engine
from pie_trio.inference.paging.cascade import CascadeRule
from tests.inference.contexts import Context, page_lists, run
from tests.inference.gpu.fakes import fake_kernels, library_of, open_fake, step_of
from tests.model_factory import write_model_directory

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

NUM_PAGES = 60
ALWAYS = CascadeRule(min_bytes=1, min_bytes_of_graph=1)
CASCADE = ["prefill.run", "shared.run", "merge_state_in_place"]


def open_with(directory: Path, rule: CascadeRule | None = ALWAYS) -> TorchEngine:
    kernels = fake_kernels(cascade=rule)
    return open_fake(directory, num_pages=NUM_PAGES, page_size=4, kernels=kernels)


def branches(engine: TorchEngine, count: int = 4) -> list[Context]:
    """Return forks of a context of 14 tokens, which share three pages, and a stranger."""
    pages = page_lists(count + 2, 10, seed=3)
    prompt = Context(pages[0])
    run(engine, prompt.feed(range(14)))
    found, copies = [], []
    for own in pages[1:-1]:
        child, copied = prompt.fork(own, 4)
        found.append(child)
        copies += copied
    stranger = Context(pages[-1])
    run(engine, stranger.feed(range(5, 14)), copies=copies)
    return [found[0], stranger, *found[1:]]


@pytest.mark.parametrize(
    ("lengths", "masked"), [((1,), None), ((1, 3, 2), None), ((1,), 2), ((1, 3), 0)]
)
def test_branches_give_what_they_give_without_a_cascade(
    tiny_llama: Path, lengths: tuple[int, ...], masked: int | None
) -> None:
    engines = [open_with(tiny_llama), open_with(tiny_llama, None)]
    contexts = [branches(engine) for engine in engines]
    for step in range(7):
        fed = [
            [(7 * step + i + k) % 256 for k in range(lengths[i % len(lengths)])]
            for i in range(5)
        ]
        masks: list[NDArray[np.bool_] | None] = [None] * 5
        if masked is not None:
            size = len(fed[masked])
            mask = np.ones((size, contexts[0][masked].kv_len + size), np.bool_)
            mask[:, 1:5] = False
            masks[masked] = mask
        library_of(engines[0]).calls.clear()
        found, expected = (
            engine.forward_logits(
                Batch(
                    tuple(
                        c.feed(t, mask=m)
                        for c, t, m in zip(own, fed, masks, strict=True)
                    )
                )
            )
            for engine, own in zip(engines, contexts, strict=True)
        )
        np.testing.assert_allclose(found, expected, atol=5e-5)
        calls = [c for c in library_of(engines[0]).calls if "run" in c or "merge" in c]
        stranger = "decode.run" if lengths == (1,) else "prefill.run"
        hidden = [] if masked is None else ["masked.run"]
        assert calls[: 4 + len(hidden)] == [*hidden, *CASCADE, stranger]
    assert "shared.run" not in library_of(engines[1]).calls


def test_a_graph_is_left_only_for_what_saves_more(tiny_llama: Path) -> None:
    page_bytes = 2 * 2 * 4 * 2 * 16 * 4  # overwritten below by the engine's own
    plain = open_with(tiny_llama)
    page_bytes = plain.info.page_bytes
    for saved, expected in (
        (9, 0),
        (10, 1),
    ):  # three forks beside the first, three pages
        rule = CascadeRule(1, saved * page_bytes)
        engine = open_with(tiny_llama, rule)
        contexts = branches(engine)
        before = step_of(engine).num_replays
        run(engine, *(c.feed([3]) for c in contexts))
        assert step_of(engine).num_replays - before == expected


def test_layers_with_windows_read_everything(tmp_path: Path) -> None:
    directory = write_model_directory(tmp_path / "model", "gemma3")
    engine = open_with(directory)
    cpu = open_engine(
        directory, name="m", num_pages=NUM_PAGES, page_size=4, num_threads=1
    ).engine
    tokens: list[list[int]] = []
    for each in (engine, cpu):
        contexts = branches(each)
        tokens.append(run(each, *(c.feed([1, 2]) for c in contexts)))
    assert tokens[0] == tokens[1]
    assert "shared.run" not in library_of(engine).calls
