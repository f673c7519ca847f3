"""Listens to a topic, more slowly than others tell."""

from __future__ import annotations

import random

from inferlet_py import inferlet, move_on_after, open_nursery, sleep, subscribe
from tests.chaos.programs.reporting import Reporter


@inferlet
async def main(seed: int) -> int:
    plan, report = random.Random(seed), Reporter()
    if plan.random() < 0.3:  # which the server closes
        await subscribe("news").__aenter__()
    for _ in range(plan.randint(1, 2)):
        topic = plan.choice(["news", "weather"])
        found: list[list[tuple[str, object, int]]] = []
        async with open_nursery() as nursery:
            for _ in range(plan.randint(1, 2)):
                pause = plan.choice([0.0, 0.0, 0.05, 0.3])
                nursery.start_soon(listen, topic, pause, found)
        for heard in found:
            await report("heard-of", topic, heard)
    return report.count


async def listen(
    topic: str, pause: float, found: list[list[tuple[str, object, int]]]
) -> None:
    heard: list[tuple[str, object, int]] = []
    async with subscribe(topic) as subscription:
        with move_on_after(1.0):
            while (message := await subscription.receive()) is not None:
                text = message.content if isinstance(message.content, str) else ""
                heard.append((message.sender, text, message.num_missed))
                await sleep(pause)
    found.append(heard)
