"""When a decode step is a graph's, and what must happen before each replay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pie_trio.engine_api import Batch
from pie_trio.errors import EngineError
from pie_trio.inference.gpu import graphs as graphs_module
from tests.inference.contexts import Context, page_lists, run
from tests.inference.gpu.fake_flashinfer import MisuseError
from tests.inference.gpu.fake_runtime import FakeRuntime
from tests.inference.gpu.fakes import fake_kernels, library_of, open_fake, step_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pie_trio.inference.engine import TorchEngine


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def engine(tiny_llama: Path, runtime: FakeRuntime) -> Iterator[TorchEngine]:
    engine = open_fake(
        tiny_llama,
        num_pages=64,
        page_size=4,
        kernels=fake_kernels(runtime=runtime, buckets=(1, 2, 4)),
    )
    yield engine
    engine.close()


def filled(engine: TorchEngine, count: int, length: int = 5) -> list[Context]:
    """Return contexts of some tokens each."""
    contexts = [Context(pages) for pages in page_lists(count, 12, seed=count)]
    run(engine, *(c.feed([1 + i] * (length + i)) for i, c in enumerate(contexts)))
    return contexts


def test_there_is_one_graph_for_each_bucket(
    runtime: FakeRuntime, engine: TorchEngine
) -> None:
    assert len(runtime.graphs) == 3
    assert step_of(engine).num_replays == 0


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_replay_gives_what_the_kernels_alone_give(
    tiny_llama: Path, engine: TorchEngine, count: int
) -> None:
    eager = open_fake(
        tiny_llama, num_pages=64, page_size=4, kernels=fake_kernels(buckets=())
    )
    ours, theirs = filled(engine, count), filled(eager, count)
    for step in range(9):  # contexts grow by several pages
        found, expected = (
            e.forward_logits(
                Batch(tuple(c.feed([7 * step + i]) for i, c in enumerate(own)))
            )
            for e, own in ((engine, ours), (eager, theirs))
        )
        np.testing.assert_allclose(found, expected, atol=5e-5)
    assert step_of(engine).num_replays == 9
    assert step_of(eager).num_replays == 0


def test_every_replay_is_planned_anew(
    runtime: FakeRuntime, engine: TorchEngine
) -> None:
    contexts = filled(engine, 3)
    wrapper = next(
        w
        for w in library_of(engine).wrappers
        if w.is_graph and getattr(w, "_size", 0) == 4
    )
    planned = wrapper.num_plans
    for step in range(1, 6):
        run(engine, *(c.feed([step]) for c in contexts))
        assert wrapper.num_plans == planned + step
    assert [g.num_replays for g in runtime.graphs] == [5, 0, 0]  # the largest is first


def test_a_replay_without_a_plan_of_its_batch_is_found(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts = filled(engine, 2)
    monkeypatch.setattr(graphs_module, "plan_decode", lambda *_: None)
    with pytest.raises(MisuseError, match="plan of another batch"):
        run(engine, *(c.feed([9]) for c in contexts))


def test_a_plan_waits_until_the_last_one_was_copied(
    runtime: FakeRuntime, engine: TorchEngine
) -> None:
    contexts = filled(engine, 1)
    runtime.log.clear()
    for _ in range(3):
        run(engine, contexts[0].feed([3]))
    waited: dict[str, bool] = {}
    last = runtime.num_events
    for line in runtime.log:
        what, name = line.split()
        if what == "wait":
            waited[name] = True
        elif (
            int(name) <= last - 3
        ):  # not those of tokens on their way to the host  # memory was written after whoever read it last was waited for
            assert waited.pop(name, False), line
    assert len(runtime.log) >= 12


def test_what_a_graph_cannot_do_runs_without_one(
    tmp_path: Path, engine: TorchEngine
) -> None:
    contexts = filled(engine, 5)
    step = step_of(engine)
    mask = np.ones((1, contexts[0].kv_len + 1), np.bool_)
    run(engine, contexts[0].feed([1], mask=mask))  # it hides nothing
    assert step.num_replays == 1
    mask = np.ones((1, contexts[0].kv_len + 1), np.bool_)
    mask[0, 2] = False
    run(engine, contexts[0].feed([1], mask=mask))
    run(engine, contexts[0].feed([1, 2]))
    run(engine, contexts[0].feed([1], input_slots=[2]))
    run(engine, *(c.feed([1]) for c in contexts))  # more than the largest bucket
    assert step.num_replays == 1


def test_a_batch_of_too_many_pages_runs_without_a_graph(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs_module, "MAX_PAGE_IDS", 3)
    engine = open_fake(
        tiny_llama, num_pages=64, page_size=4, kernels=fake_kernels(buckets=(1,))
    )
    (context,) = filled(engine, 1, length=10)
    used: list[int] = []
    for _ in range(9):
        run(engine, context.feed([5]))
        used.append(step_of(engine).num_replays)
    assert used == [1, 2, 3, 4, 5, 6, 6, 6, 6]  # four pages hold 16 tokens


def test_graphs_are_compared_with_the_kernels_at_the_start(engine: TorchEngine) -> None:
    step_of(engine).graphs.check()


def test_a_graph_that_reads_other_memory_is_found(engine: TorchEngine) -> None:
    graphs = step_of(engine).graphs
    captured: Any = graphs._captured[2].graph
    captured.operations.pop(3)  # as if a kernel were missing: a sine
    with pytest.raises(EngineError, match="graph of 2 requests gives other states"):
        graphs.check()


def test_padding_writes_to_no_page_of_a_context(engine: TorchEngine) -> None:
    contexts = filled(engine, 3)
    used = {page for c in contexts for page in c.page_ids.tolist()}
    free = np.array([p for p in range(64) if p not in used], np.int32)
    for _ in range(3):
        run(engine, *(c.feed([8]) for c in contexts))
    assert len(free) > 20
    assert not engine.read_pages(free).any()
