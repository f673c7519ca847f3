"""Steps that one thread asks the fake library for while another one waits for their ends."""

from __future__ import annotations

from dataclasses import replace
from threading import Thread
from typing import TYPE_CHECKING

import pytest
import trio

from pie_trio.control.device_steps import DeviceSteps
from pie_trio.control.device_thread import open_device_thread
from pie_trio.engine_api import Batch, ProcessorSpec, SamplerSpec
from pie_trio.errors import MustCollectError
from pie_trio.inference.engine import open_engine
from tests.control.engines import TIME_LIMIT_SECONDS
from tests.inference.contexts import Context, page_lists, run
from tests.inference.gpu.fakes import fake_kernels, open_fake
from tests.inference.gpu.test_overlap import PROMPTS, SAMPLERS, following, tokens_of

if TYPE_CHECKING:
    from pathlib import Path

    from pie_trio.engine_api import ForwardRequest

NUM_PAIRS = 5
FILTERED = SamplerSpec(temperature=1.0, top_p=0.9, seed=5)
"""Its token is for the host to see first."""


@pytest.mark.parametrize("samplers", [SAMPLERS, [*SAMPLERS[:3], FILTERED]])
async def test_tokens_are_those_of_the_cpu_whoever_has_to_see_them_first(
    tiny_llama: Path, samplers: list[SamplerSpec]
) -> None:
    cpu = open_engine(
        tiny_llama, name="m", num_pages=64, page_size=4, num_threads=1
    ).engine
    gpu = open_fake(tiny_llama, num_pages=64, page_size=4, kernels=fake_kernels())
    assert gpu.is_pipelined
    expected, fed = list[list[int]](), PROMPTS
    contexts = [Context(p) for p in page_lists(4, 16, seed=1)]
    for _ in range(2 * NUM_PAIRS):
        parts = zip(contexts, fed, samplers, strict=True)
        expected.append(run(cpu, *(c.feed(t, sampler=s) for c, t, s in parts)))
        fed = [[token] for token in expected[-1]]
    contexts = [Context(p) for p in page_lists(4, 16, seed=1)]
    found: dict[int, list[int]] = {}

    async def step(number: int, batch: Batch, begun: trio.Event) -> None:
        begun.set()
        found[number] = tokens_of(await device.execute(batch, is_here=False))

    fed = PROMPTS
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_device_thread(gpu) as device:
            for number in range(0, 2 * NUM_PAIRS, 2):
                parts = zip(contexts, fed, samplers, strict=True)
                first = Batch(tuple(c.feed(t, sampler=s) for c, t, s in parts))
                second = Batch(
                    tuple(
                        following(c.feed([0], sampler=s), index)
                        for index, (c, s) in enumerate(
                            zip(contexts, samplers, strict=True)
                        )
                    )
                )
                async with trio.open_nursery() as nursery:
                    begun = trio.Event()
                    nursery.start_soon(step, number, first, begun)
                    await begun.wait()
                    nursery.start_soon(step, number + 1, second, begun)
                fed = [[token] for token in found[number + 1]]
    assert [found[number] for number in sorted(found)] == expected


@pytest.mark.parametrize("what", ["log-probabilities", "a processor"])
def test_a_step_that_has_to_wait_for_another_one_does(
    tiny_llama: Path, what: str
) -> None:
    """Beside what can be followed somebody wants what the host has to see first."""
    gpu = open_fake(tiny_llama, num_pages=64, page_size=4, kernels=fake_kernels())
    gpu.create_processor(1, ProcessorSpec(allowed_tokens=(65,)))
    steps, pages = DeviceSteps(gpu), page_lists(4, 16, seed=1)
    plain, first, second = (Context(p) for p in pages[:3])

    def wanting(context: Context) -> ForwardRequest:
        request = context.feed([5, 6, 7], sampler=SamplerSpec())
        (output,) = request.outputs
        is_processed = what == "a processor"
        change = {"processor": 1} if is_processed else {"logprobs": True}
        request.outputs = (replace(output, **change),)
        return request

    started = steps.start(
        Batch((plain.feed([1, 2], sampler=SamplerSpec()), wanting(first)))
    )
    found: list[list[int]] = []
    collector = Thread(target=lambda: found.append(tokens_of(started.finish())))
    # Only when the next one is asked for, which has to wait for it.
    submit = gpu.submit

    def submit_and_collect(batch: Batch) -> None:
        try:
            submit(batch)
        except MustCollectError:
            collector.start()
            raise

    gpu.submit = submit_and_collect  # type: ignore[method-assign]
    follower = following(plain.feed([0], sampler=SamplerSpec()), 0)
    next_step = steps.start(Batch((follower, wanting(second))))
    found.append(tokens_of(next_step.finish()))
    collector.join()
    cpu = open_engine(
        tiny_llama, name="m", num_pages=64, page_size=4, num_threads=1
    ).engine
    again = Context(pages[0])
    expected = run(cpu, again.feed([1, 2], sampler=SamplerSpec()))
    expected += run(cpu, again.feed(expected, sampler=SamplerSpec()))
    assert [tokens[0] for tokens in found] == expected
