"""Steps that one thread asks the fake library for while another one waits for their ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from pie_trio.control.device_thread import open_device_thread
from pie_trio.engine_api import Batch, SamplerSpec
from pie_trio.inference.engine import open_engine
from tests.control.engines import TIME_LIMIT_SECONDS
from tests.inference.contexts import Context, page_lists, run
from tests.inference.gpu.fakes import fake_kernels, open_fake
from tests.inference.gpu.test_overlap import PROMPTS, SAMPLERS, following, tokens_of

if TYPE_CHECKING:
    from pathlib import Path

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
