"""What the model says within a grammar, alone and in forks."""

from __future__ import annotations

import random

from inferlet_py import Context, Grammar, Processor, inferlet
from tests.chaos.programs.reporting import Reporter, make_text

PATTERNS = ("[a-c]{4}", "(yes|no)", "[0-9]{2,3};")


@inferlet
async def main(seed: int) -> int:
    plan, report = random.Random(seed), Reporter()
    async with Context() as context:
        for _ in range(plan.randint(1, 2)):
            await context.fill(make_text(plan, 4))
            pattern = plan.choice(PATTERNS)
            before = list(context.token_ids)
            if plan.random() < 0.5:
                text = await context.generate(regex=pattern, max_tokens=8).text()
            else:
                text = await write_in_fork(context, pattern)
            context.truncate(len(before))
            await report("written", before, pattern, text)
    return report.count


async def write_in_fork(context: Context, pattern: str) -> str:
    grammar = Grammar.regex(pattern)
    processor = await Processor.create(grammar=grammar)  # the server closes it
    async with context.fork() as fork:
        return await fork.generate(processor=processor, max_tokens=8).text()
