"""Forks of one context under a nursery; some are given up before they are done."""

from __future__ import annotations

import random

from inferlet_py import Context, inferlet, move_on_after, open_nursery
from tests.chaos.programs.reporting import Reporter, generate, make_text

Found = list[tuple[list[int], list[int]]]


@inferlet
async def main(seed: int) -> int:
    plan, report = random.Random(seed), Reporter()
    async with Context() as root:
        await root.fill(make_text(plan, 9))
        for _ in range(plan.randint(1, 2)):
            found: Found = []
            async with open_nursery() as nursery:
                for _ in range(plan.randint(2, 3)):
                    text = make_text(plan, 3)
                    seconds = plan.choice([0.005, 0.03, 60.0])
                    nursery.start_soon(branch, root, text, seconds, found)
                if plan.random() < 0.2:
                    nursery.cancel_scope.deadline = 0.0
            for before, tokens in found:
                await report("tokens", before, tokens)
            before = list(root.token_ids)
            await report("tokens", before, await generate(root, 2))
    return report.count


async def branch(root: Context, text: str, seconds: float, found: Found) -> None:
    with move_on_after(seconds):
        async with root.fork() as context:
            await context.fill(text)
            before = list(context.token_ids)
            found.append((before, await generate(context, 3, stepwise=seconds > 1)))
