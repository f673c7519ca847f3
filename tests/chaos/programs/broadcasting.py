"""Tells whoever listens numbers that grow."""

from __future__ import annotations

import random

from inferlet_py import broadcast, inferlet, sleep
from tests.chaos.programs.reporting import Reporter


@inferlet
async def main(seed: int) -> int:
    plan, report = random.Random(seed), Reporter()
    for number in range(plan.randint(3, 20)):
        broadcast(plan.choice(["news", "news", "weather"]), str(number))
        if plan.random() < 0.6:
            await sleep(plan.choice([0.0, 0.01, 0.2]))
    await report("broadcast")
    return report.count
