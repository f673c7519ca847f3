"""Ranks together give what one process gives that has the whole model."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pie_trio.engine_api import (
    Batch,
    OutputSpec,
    ProcessorSpec,
    ProjectRequest,
    SamplerSpec,
)
from pie_trio.errors import AdapterError, EngineError
from pie_trio.inference.engine import open_engine
from tests.adapter_factory import ALL, PACKED, write_adapter
from tests.inference.contexts import (
    Context,
    execute,
    first_outputs,
    generate,
    int32,
    page_lists,
    run,
)
from tests.inference.gpu.fakes import fake_kernels
from tests.inference.histories import (
    NUM_PAGES,
    PAGE_SIZE,
    Feed,
    check_composition,
)
from tests.inference.parallel.ranks import followers_of, open_ranks
from tests.model_factory import LlamaShape, write_llama_directory, write_model_directory
from tests.model_families import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pie_trio.inference.engine import TorchEngine
    from pie_trio.inference.parallel.part import Part

TOLERANCE = 1e-4
PROMPTS = [[256, *b"Once upon a time"], [256], [256, *b"A much longer beginning"]]


def open_part(directory: Path, part: Part | None = None, **options: Any) -> TorchEngine:
    options = {"num_pages": NUM_PAGES, "page_size": PAGE_SIZE, **options}
    options = {"num_embeds": 8, "num_threads": 1, **options}
    return open_engine(directory, name="m", part=part, **options).engine


@pytest.fixture
def open_both() -> Iterator[Callable[..., tuple[TorchEngine, TorchEngine]]]:
    """Opens a model alone and by ranks, and closes the ranks."""
    opened: list[TorchEngine] = []

    def open_one(
        directory: Path, size: int = 2, **options: Any
    ) -> tuple[TorchEngine, TorchEngine]:
        opened.append(open_ranks(partial(open_part, directory, **options), size))
        return open_part(directory, **options), opened[-1]

    yield open_one
    for engine in opened:
        engine.close()


def decode(engine: TorchEngine, sampler: SamplerSpec, **more: Any) -> list[list[int]]:
    """Prefill in chunks, while others decode already."""
    contexts = [Context(ids) for ids in page_lists(3, 10, seed=3)]
    return generate(
        engine, contexts, PROMPTS, 10, chunk_size=7, stagger=1, sampler=sampler, **more
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family_gives_the_tokens_of_one_rank(
    variant: str, tmp_path: Path, open_both: Callable[..., Any]
) -> None:
    alone, ranks = open_both(write_model_directory(tmp_path, variant))
    assert ranks.info == alone.info
    for sampler in (SamplerSpec(), SamplerSpec(temperature=1.0, top_p=0.9, seed=5)):
        assert decode(ranks, sampler) == decode(alone, sampler)

    def reference(
        token_ids: Sequence[int], positions: Sequence[int], mask: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        request = Context(range(20)).feed(
            token_ids, positions=positions, mask=mask, rows=range(len(token_ids))
        )
        logits = alone.forward_logits(Batch((request,)))
        return np.asarray(logits, np.float64)

    steps: list[list[Feed | None]] = [
        [Feed(5, False, 0), Feed(7, True, 2), Feed(1, False, 0)],
        [Feed(1, False, 0), None, Feed(2, True, 0)],
        [Feed(1, True, 0), Feed(1, False, 2), Feed(1, False, 0)],
    ]
    check_composition(
        ranks, reference, steps, fork_after=1, seed=6, tolerance=TOLERANCE
    )


@pytest.mark.parametrize("options", [{"quantize": "int8"}, {"dtype": "bfloat16"}])
def test_ranks_compute_in_other_numbers_too(
    options: dict[str, Any], tiny_llama: Path, open_both: Callable[..., Any]
) -> None:
    alone, ranks = open_both(tiny_llama, **options)
    request = Context(range(10)).feed(PROMPTS[0], rows=range(len(PROMPTS[0])))
    found, expected = (e.forward_logits(Batch((request,))) for e in (ranks, alone))
    assert np.abs(found - expected).mean() < 0.03 * expected.std()


def test_three_ranks_give_the_tokens_of_one(
    tmp_path: Path, open_both: Callable[..., Any]
) -> None:
    shape = LlamaShape(num_kv_heads=3, intermediate_size=42, is_tied=False)
    alone, ranks = open_both(write_llama_directory(tmp_path, shape), 3)
    assert decode(ranks, SamplerSpec()) == decode(alone, SamplerSpec())


def test_a_vocabulary_that_does_not_divide_is_shared_all_the_same(
    tmp_path: Path, open_both: Callable[..., Any]
) -> None:
    shape = LlamaShape(vocab_size=261)
    alone, ranks = open_both(write_llama_directory(tmp_path, shape))
    count = len(PROMPTS[0])
    (found,), (expected,) = (
        first_outputs(
            engine, Context(range(9)).feed(PROMPTS[0], rows=range(count), logits=True)
        )
        for engine in (ranks, alone)
    )
    assert found.logits.shape == (count, 261)
    np.testing.assert_allclose(found.logits, expected.logits, atol=TOLERANCE)
    assert found.token_ids.tolist() == expected.token_ids.tolist()


def test_a_page_has_the_parts_of_all_ranks_and_can_be_put_elsewhere(
    tiny_llama: Path, open_both: Callable[..., Any]
) -> None:
    alone, ranks = open_both(tiny_llama, kernels="torch")  # whose pages are plain
    for engine in (alone, ranks):
        context = Context([0, 1, 2, 3])
        expected = run(engine, context.feed(PROMPTS[0][:13]))
        pages = engine.read_pages(int32(0, 1, 2, 3))
        assert pages.shape == (4, engine.info.page_bytes)
        engine.write_pages(int32(7, 9, 8, 10), pages)
        moved = Context([7, 9, 8, 10], 13)
        assert run(engine, moved.feed(expected)) == run(engine, context.feed(expected))
    # The same numbers, by rank: the second half of the heads in the second half of a page.
    whole = alone.read_pages(int32(0)).view(np.float32).reshape(2, 2, PAGE_SIZE, 2, 8)
    parts = ranks.read_pages(int32(0)).view(np.float32).reshape(2, 2, 2, PAGE_SIZE, 8)
    for rank in range(2):
        np.testing.assert_allclose(parts[rank], whole[:, :, :, rank], atol=TOLERANCE)
    with pytest.raises(EngineError, match="data of the pages"):
        ranks.write_pages(int32(1), pages[:1, 1:])


def test_pages_that_rank_0_cannot_read_are_not_taken_for_the_next_ones(
    tiny_llama: Path,
    open_both: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, ranks = open_both(tiny_llama)
    run(ranks, Context([0, 1]).feed(b"abcdefgh"))
    expected = ranks.read_pages(int32(1))
    own = vars(vars(ranks)["_compute"])["_kv_cache"]

    def fail(_: object) -> None:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(own, "read", fail)
        with pytest.raises(EngineError, match="no memory"):
            ranks.read_pages(int32(0))
    assert (ranks.read_pages(int32(1)) == expected).all()


def test_hidden_states_are_stored_by_all_ranks(
    tiny_llama: Path, open_both: Callable[..., Any]
) -> None:
    def go(engine: TorchEngine) -> list[Any]:
        context = Context(range(6))
        first = context.feed(PROMPTS[0], sampler=None, store=int32(3), hidden=True)
        ((state,),) = execute(engine, Batch((first,)))
        wish = (OutputSpec(int32(0), logits=True),)
        projection = ProjectRequest(int32(3), int32(5), wish)
        ((projected,),) = execute(engine, Batch(projections=(projection,)))
        on = context.feed([0], input_slots=[3], logits=True)
        ((entered,),) = execute(engine, Batch((on,)))
        return [state.hidden, projected.logits, entered.logits]

    alone, ranks = (go(engine) for engine in open_both(tiny_llama))
    for found, expected in zip(ranks, alone, strict=True):
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_a_batch_that_is_refused_leaves_the_ranks_together(
    tiny_llama: Path, open_both: Callable[..., Any]
) -> None:
    alone, ranks = open_both(tiny_llama)
    followers = followers_of(ranks)
    for request in (
        Context([99]).feed(b"abc"),
        Context([0]).feed(b"abc", processor=77),
        Context([0]).feed(b"abc", adapter="none"),
    ):
        with pytest.raises(EngineError):
            ranks.execute(Batch((request,)))
    assert followers.num_steps == 0
    ranks.create_processor(1, ProcessorSpec(bias=((65, 100.0),)))
    request = Context([0]).feed(b"abc", processor=1)
    assert run(ranks, request) == [65]
    assert decode(ranks, SamplerSpec()) == decode(alone, SamplerSpec())


def test_a_step_that_one_rank_fails_in_is_the_end_of_all(
    tiny_llama: Path,
    open_both: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, ranks = open_both(tiny_llama, kernels="torch")
    run(ranks, Context([0]).feed(b"abc"))

    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    # Before it asks the others for anything, so that no thread of this process waits for ever.
    monkeypatch.setattr(followers_of(ranks), "begin_step", lambda _: None)
    monkeypatch.setattr(vars(vars(ranks)["_compute"])["_kv_cache"], "layer", fail)
    with pytest.raises(EngineError, match="rank 0 failed in a step"):
        run(ranks, Context([0]).feed(b"abc"))


@pytest.mark.parametrize(
    ("variant", "targets"),
    [
        ("llama-biased", ALL),
        ("phi3", PACKED),
        ("qwen3-moe", ("q_proj", "o_proj")),
    ],
)
def test_ranks_have_their_parts_of_adapters(
    variant: str,
    targets: Sequence[str],
    tmp_path: Path,
    open_both: Callable[..., Any],
) -> None:
    directory = write_model_directory(tmp_path / "base", variant)
    adapter = write_adapter(tmp_path / "adapter", directory, targets)
    alone, ranks = open_both(directory)
    plain = decode(alone, SamplerSpec())
    for engine in (alone, ranks):
        engine.load_adapter("a", adapter)
    expected = decode(alone, SamplerSpec(), adapter="a")
    assert decode(ranks, SamplerSpec(), adapter="a") == expected != plain
    assert decode(ranks, SamplerSpec()) == plain
    ranks.drop_adapter("a")
    assert followers_of(ranks).engines[0].info.adapters == ()
    with pytest.raises(EngineError, match="not loaded"):
        decode(ranks, SamplerSpec(), adapter="a")
    ranks.load_adapter("a", adapter)
    assert decode(ranks, SamplerSpec(), adapter="a") == expected


def test_an_adapter_that_one_rank_cannot_load_is_no_ranks(
    tmp_path: Path, open_both: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_model_directory(tmp_path / "base", "llama")
    adapter = write_adapter(tmp_path / "adapter", directory, ALL)
    _, ranks = open_both(directory)

    def refuse(*_: object) -> None:
        raise AdapterError("there is no room")

    (follower,) = followers_of(ranks).engines
    with monkeypatch.context() as patch:
        patch.setattr(follower, "load_adapter", refuse)
        with pytest.raises(AdapterError, match="no room"):
            ranks.load_adapter("a", adapter)
    assert ranks.info.adapters == follower.info.adapters == ()
    with monkeypatch.context() as patch:
        patch.setattr(ranks, "read_adapter", refuse)
        with pytest.raises(AdapterError, match="no room"):
            ranks.load_adapter("a", adapter)
    assert ranks.info.adapters == follower.info.adapters == ()
    ranks.load_adapter("a", adapter)
    assert decode(ranks, SamplerSpec(), adapter="a")


@pytest.mark.parametrize("variant", ["llama-untied", "qwen3-moe", "gemma2"])
def test_ranks_on_gpus_give_the_tokens_of_one(variant: str, tmp_path: Path) -> None:
    """Over fakes of the library and the device, and gloo instead of NCCL."""
    directory = write_model_directory(tmp_path, variant)

    def open_fake(part: Part | None = None) -> TorchEngine:
        return open_part(directory, part, kernels=fake_kernels())

    alone, ranks = open_fake(), open_ranks(open_fake, 2)
    for sampler in (SamplerSpec(), SamplerSpec(temperature=1.0, top_k=20, seed=5)):
        assert decode(ranks, sampler) == decode(alone, sampler)
    ranks.close()
