"""Steps that are submitted before the one before has come back, over the fake library."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from pie_trio.engine_api import Batch, OutputSpec, ProcessorSpec, SamplerSpec
from pie_trio.errors import AdapterError, EngineError
from pie_trio.inference.engine import TorchEngine, open_engine
from tests.adapter_factory import write_adapter
from tests.inference.contexts import Context, int32, page_lists, run
from tests.inference.gpu.fake_runtime import FakeRuntime
from tests.inference.gpu.fakes import fake_kernels, open_fake, step_of
from tests.model_factory import write_llama_directory

if TYPE_CHECKING:
    from pathlib import Path

    from pie_trio.engine_api import BatchResult, ForwardRequest

SAMPLERS = [
    SamplerSpec(),
    SamplerSpec(temperature=1.0, seed=3),
    SamplerSpec(temperature=0.7, top_k=5, seed=9),
    SamplerSpec(temperature=1.2, top_k=4, top_p=0.8, seed=4),
]
PROMPTS = [[256, 65, 66], [256], [9] * 6, [3, 4]]
NUM_STEPS = 11


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def engine(tiny_llama: Path, runtime: FakeRuntime) -> TorchEngine:
    kernels = fake_kernels(runtime=runtime)
    return open_fake(tiny_llama, num_pages=64, page_size=4, kernels=kernels)


def following(request: ForwardRequest, source: int) -> ForwardRequest:
    """Return a request whose token another one samples."""
    request.token_ids = int32(0)
    request.follows = source
    return request


def tokens_of(result: BatchResult) -> list[int]:
    found: list[int] = []
    for one in result.forwards:
        if isinstance(one, EngineError):
            raise one
        found.append(int(one[0].token_ids[0]))
    return found


def in_turn(engine: TorchEngine) -> list[list[int]]:
    """Decode with every token seen before the next step."""
    contexts = [Context(p) for p in page_lists(4, 16, seed=1)]
    fed, found = PROMPTS, list[list[int]]()
    for _ in range(NUM_STEPS):
        parts = zip(contexts, fed, SAMPLERS, strict=True)
        found.append(run(engine, *(c.feed(t, sampler=s) for c, t, s in parts)))
        fed = [[token] for token in found[-1]]
    return found


def test_tokens_need_not_leave_the_device_between_steps(
    tiny_llama: Path, engine: TorchEngine
) -> None:
    """One step is always ahead; the order of the batch changes from step to step."""
    cpu = open_engine(
        tiny_llama, name="m", num_pages=64, page_size=4, num_threads=1
    ).engine
    expected = in_turn(cpu)
    contexts = [Context(p) for p in page_lists(4, 16, seed=1)]
    parts = zip(contexts, PROMPTS, SAMPLERS, strict=True)
    engine.submit(Batch(tuple(c.feed(t, sampler=s) for c, t, s in parts)))
    order, orders = [0, 1, 2, 3], [[0, 1, 2, 3]]
    for step in range(1, NUM_STEPS):
        before, order = order, order[step % 4 :] + order[: step % 4]
        engine.submit(
            Batch(
                tuple(
                    following(
                        contexts[i].feed([0], sampler=SAMPLERS[i]), before.index(i)
                    )
                    for i in order
                )
            )
        )
        orders.append(order)
        found = tokens_of(engine.collect())
        assert found == [expected[step - 1][i] for i in orders[step - 1]]
    assert tokens_of(engine.collect()) == [expected[-1][i] for i in order]
    assert step_of(engine).num_replays == NUM_STEPS - 1


def test_a_prefill_may_join_those_that_follow(engine: TorchEngine) -> None:
    contexts = [Context(p) for p in page_lists(3, 16, seed=2)]
    engine.submit(Batch((contexts[0].feed([1, 2]), contexts[1].feed([3]))))
    prompt = contexts[2].feed([5, 6, 7])
    engine.submit(Batch((prompt, following(contexts[1].feed([0]), 1))))
    first, second = tokens_of(engine.collect()), tokens_of(engine.collect())
    others = [Context(p) for p in page_lists(3, 16, seed=2)]
    assert first == run(engine, others[0].feed([1, 2]), others[1].feed([3]))
    last = run(engine, others[2].feed([5, 6, 7]), others[1].feed([first[1]]))
    assert second == last


def test_submitting_waits_for_nothing_of_the_steps_on_their_way(
    engine: TorchEngine, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts = [Context(p) for p in page_lists(2, 16)]
    monkeypatch.setattr(torch.Tensor, "cpu", None)
    monkeypatch.setattr(torch.Tensor, "item", None)
    engine.submit(Batch(tuple(c.feed([7, 8]) for c in contexts)))
    downloads = [str(runtime.num_events)]
    for step in range(4):
        runtime.log.clear()
        requests = (following(c.feed([0]), i) for i, c in enumerate(contexts))
        engine.submit(Batch(tuple(requests)))
        downloads.append(str(runtime.num_events))
        assert f"wait {downloads[step]}" not in runtime.log
        runtime.log.clear()
        engine.collect()
        assert runtime.log == [f"wait {downloads[step]}"]


def test_what_the_host_has_to_see_first_cannot_be_followed(
    engine: TorchEngine,
) -> None:
    engine.create_processor(1, ProcessorSpec(allowed_tokens=(65,)))
    row = int32(0)
    for output in (
        OutputSpec(row, SamplerSpec(temperature=1.0, top_p=0.9)),
        OutputSpec(row, SamplerSpec(temperature=1.0, min_p=0.1)),
        OutputSpec(row, SamplerSpec(temperature=1.0, typical_p=0.9)),
        OutputSpec(row, SamplerSpec(), processor=1),
        OutputSpec(row, SamplerSpec(), logprobs=True),
        OutputSpec(row, None, logits=True),
        OutputSpec(int32(0, 0), SamplerSpec()),
    ):
        assert not engine.can_follow((output,))
        context = Context(range(8))
        first = context.feed([3])
        first.outputs = (output,)
        engine.submit(Batch((first,)))
        with pytest.raises(EngineError, match=r"collect (it|that step), and give"):
            engine.submit(Batch((following(context.feed([0]), 0),)))
        engine.collect()
    assert all(engine.can_follow((OutputSpec(row, spec),)) for spec in SAMPLERS)
    assert not engine.can_follow(())


def test_rows_of_the_host_go_one_step_behind_in_batches_of_their_own(
    tiny_llama: Path, engine: TorchEngine
) -> None:
    """What a control layer does: two batches in turn, each while the other one runs."""
    allowed = ProcessorSpec(repetition_penalty=1.3, allowed_tokens=(*range(65, 90),))
    cpu = open_engine(
        tiny_llama, name="m", num_pages=64, page_size=4, num_threads=1
    ).engine
    draw = SamplerSpec(temperature=1.0, seed=1)
    alone: list[list[int]] = [[], []]
    cpu.create_processor(1, allowed)
    pages = page_lists(2, 16)
    for row, processor in ((0, 0), (1, 1)):
        context, token = Context(pages[row]), 9
        for _ in range(8):
            (token,) = run(
                cpu,
                context.feed(
                    [token],
                    sampler=draw,
                    processor=processor,
                    accept_sampled=processor > 0,
                ),
            )
            alone[row].append(token)
    engine.create_processor(1, allowed)
    free, bound = (Context(p) for p in pages)
    found: list[list[int]] = [[], []]
    engine.submit(Batch((free.feed([9], sampler=draw),)))
    token = 9
    for _ in range(8):
        request = bound.feed([token], sampler=draw, processor=1, accept_sampled=True)
        engine.submit(Batch((request,)))
        (free_token,) = tokens_of(engine.collect())
        engine.submit(Batch((free.feed([free_token], sampler=draw),)))
        (token,) = tokens_of(engine.collect())
        found[0].append(free_token)
        found[1].append(token)
    engine.collect()
    assert found == alone


def test_a_processor_is_in_one_step_on_its_way_alone(engine: TorchEngine) -> None:
    engine.create_processor(1, ProcessorSpec(allowed_tokens=(65,)))
    contexts = [Context(p) for p in page_lists(2, 8)]
    engine.submit(Batch((contexts[0].feed([1], processor=1),)))
    with pytest.raises(EngineError, match="processor 1 is part of a step on its way"):
        engine.submit(Batch((contexts[1].feed([1], processor=1),)))
    assert tokens_of(engine.collect()) == [65]


def test_steps_are_collected_as_they_were_submitted_and_not_too_many(
    engine: TorchEngine,
) -> None:
    contexts = [Context(p) for p in page_lists(3, 8)]
    with pytest.raises(EngineError, match="no step is on its way"):
        engine.collect()
    engine.submit(Batch((contexts[0].feed([1]),)))
    engine.submit(Batch((contexts[1].feed([1]), contexts[2].feed([2]))))
    with pytest.raises(EngineError, match="at most 2 steps"):
        engine.submit(Batch((contexts[0].feed([1]),)))
    with pytest.raises(EngineError, match="a step is on its way"):
        engine.execute(Batch((contexts[0].feed([1]),)))
    assert [len(engine.collect().forwards) for _ in range(2)] == [1, 2]


def test_a_step_that_is_refused_leaves_those_on_their_way_alone(
    engine: TorchEngine,
) -> None:
    context = Context(range(8))
    engine.submit(Batch((context.feed([1]),)))
    with pytest.raises(EngineError, match="follows forward 3 of the step before"):
        engine.submit(Batch((following(context.feed([0]), 3),)))
    context.kv_len -= 1
    engine.submit(Batch((following(context.feed([0]), 0),)))
    first, second = tokens_of(engine.collect()), tokens_of(engine.collect())
    other = Context(range(8, 16))
    assert run(engine, other.feed([1])) == first
    assert run(engine, other.feed(first)) == second
    with pytest.raises(EngineError, match="has no token on the device"):
        engine.submit(Batch((following(context.feed([0]), 0),)))


def test_an_adapter_stays_until_its_step_was_collected(tmp_path: Path) -> None:
    directory = write_llama_directory(tmp_path / "model")
    adapter = write_adapter(tmp_path / "adapter", directory)
    engine = open_fake(directory, num_pages=16, page_size=4)
    engine.load_adapter("style", adapter)
    engine.submit(Batch((Context(range(4)).feed([1], adapter="style"),)))
    with pytest.raises(AdapterError, match="is in use"):
        engine.drop_adapter("style")
    engine.collect()
    engine.drop_adapter("style")


def test_on_the_cpu_a_step_is_done_when_it_was_submitted(tiny_llama: Path) -> None:
    engine = open_engine(
        tiny_llama, name="m", num_pages=64, page_size=4, num_threads=1
    ).engine
    assert not engine.can_follow((OutputSpec(int32(0), SamplerSpec()),))
    context = Context(range(8))
    engine.submit(Batch((context.feed([1]),)))
    with pytest.raises(EngineError, match="has no token on the device"):
        engine.submit(Batch((following(context.feed([0]), 0),)))
    assert tokens_of(engine.collect()) == run(engine, Context(range(8, 16)).feed([1]))
