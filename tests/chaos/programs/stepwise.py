"""A token a call, each told to the client before the next: whoever reads slowly holds it up."""

from __future__ import annotations

import random

from inferlet_py import Context, Greedy, inferlet, suspend_pages
from tests.chaos.programs.reporting import Reporter, make_text


@inferlet
async def main(seed: int) -> int:
    plan, report = random.Random(seed), Reporter()
    context = Context()
    await context.fill(make_text(plan, 14))
    for _ in range(plan.randint(3, 8)):
        if plan.random() < 0.1:
            await suspend_pages()
        before = list(context.token_ids)
        if plan.random() < 0.5:
            token = await context.sample(Greedy())
        else:
            token = (await context.forward()).argmax()
        context.append([token])
        await report("tokens", before, [token])
    if plan.random() < 0.5:  # else the server closes what the inferlet does not
        context.close()
    return report.count
