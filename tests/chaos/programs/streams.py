"""A conversation: texts, and what the model says to them, in a stream or relayed by the server."""

from __future__ import annotations

import random

from inferlet_py import CancelScope, Context, inferlet, move_on_after, receive, sleep
from tests.chaos.programs.reporting import Reporter, generate, make_text


@inferlet
async def main(seed: int) -> int:
    plan, report = random.Random(seed), Reporter()
    try:
        async with Context() as context:
            for _ in range(plan.randint(1, 3)):
                await context.fill(make_text(plan, 6))
                before = list(context.token_ids)
                await say(report, context, is_relayed=plan.random() < 0.4)
                if plan.random() < 0.3:
                    context.truncate(len(before))
                if plan.random() < 0.3:
                    await sleep(plan.choice([0.0, 0.02, 0.5]))
                if plan.random() < 0.3:
                    with move_on_after(0.2):
                        await report("heard", await receive())
    finally:
        with CancelScope(shield=True):  # whatever has ended it may take a moment more
            await sleep(plan.choice([0.0, 0.0, 0.3]))
    return report.count


async def say(report: Reporter, context: Context, *, is_relayed: bool) -> None:
    before = list(context.token_ids)
    if is_relayed:
        await report("relaying")
        generation = context.generate(max_tokens=8, stop_tokens=[])
        text = await generation.send({"is": "relayed"})
        found = context.token_ids[len(before) :]
        await report("relayed", text)
    else:
        found = await generate(context, 4)
    assert context.token_ids == [*before, *found], "what was read is in the context"
    await report("tokens", before, found)
