"""A beginning that inferlets of one owner share: by a name, or because it is the same text."""

from __future__ import annotations

import random

from inferlet_py import (
    CommandCancelledError,
    Context,
    NotFoundError,
    get_owner,
    inferlet,
    sleep,
)
from tests.chaos.programs.reporting import Reporter, generate, make_text


@inferlet
async def main(seed: int) -> int:
    plan, report = random.Random(seed), Reporter()
    for _ in range(plan.randint(1, 2)):
        name = plan.choice("xyz")
        try:
            if plan.random() < 0.3:
                await reuse(plan, report)
            else:
                await share(plan, report, name)
        except CommandCancelledError:
            # Who has offered it was ended before it was written.
            await report("hole", name)
    return report.count


async def reuse(plan: random.Random, report: Reporter) -> None:
    async with Context() as context:
        await context.fill(f"{get_owner()} begins like all", reuse=True)
        await go_on(plan, report, context)


async def share(plan: random.Random, report: Reporter, name: str) -> None:
    # The owner is in the text: what came from another one's would be seen.
    text = f"{get_owner()} shares {name * 5}"
    try:
        context = Context.from_export(name)
        await report("imported", name, context.token_ids)
    except NotFoundError:
        async with Context() as first:
            await first.fill(text)
            persistent = plan.random() < 0.5
            seconds = plan.choice([None, 0.3])
            first.export(name, persistent=persistent, seconds_to_live=seconds)
            await sleep(plan.choice([0.0, 0.1]))
            await go_on(plan, report, first)
        return
    async with context:
        await go_on(plan, report, context)


async def go_on(plan: random.Random, report: Reporter, context: Context) -> None:
    await context.fill(make_text(plan, 3))
    before = list(context.token_ids)
    await report("tokens", before, await generate(context, 3))
