"""Write several texts as long as there is memory for them, and give the least likely up first."""

import math
from dataclasses import dataclass

from inferlet_py import (
    CancelScope,
    Context,
    Sampler,
    inferlet,
    memory_pressure,
    open_nursery,
)


@dataclass
class Branch:
    """A text that is being written."""

    scope: CancelScope
    context: Context
    logprob: float = 0.0
    num_tokens: int = 0

    def score(self) -> float:
        """Return the mean log-probability of its tokens."""
        return self.logprob / self.num_tokens if self.num_tokens else -math.inf


@inferlet
async def main(
    prompt: str = "Once upon a time",
    count: int = 8,
    max_tokens: int = 120,
    seed: int = 0,
) -> dict[str, object]:
    """Return the most likely of several texts, and how many of them were given up.

    Args:
        prompt: The text to continue.
        count: Texts to begin with.
        max_tokens: Most tokens of each.
        seed: Of the draws.
    """
    running: list[Branch] = []
    finished: list[Branch] = []

    async def write(branch: Branch, index: int) -> None:
        with branch.scope, branch.context as ctx:
            sampler = Sampler(temperature=1.2, seed=seed + index)
            async for chunk in ctx.generate(
                max_tokens=max_tokens, sampler=sampler, logprobs=True, stepwise=True
            ):
                branch.logprob += sum(chunk.logprobs or ())
                branch.num_tokens += len(chunk.token_ids)
            finished.append(branch)
        running.remove(branch)

    async def make_room() -> None:
        while True:
            await memory_pressure()
            if len(running) > 1:
                min(running, key=Branch.score).scope.cancel()

    async with Context() as root, open_nursery() as helpers:
        await root.fill(prompt)
        helpers.start_soon(make_room)
        async with open_nursery() as nursery:
            for index in range(count):
                running.append(Branch(CancelScope(), root.fork()))
                nursery.start_soon(write, running[-1], index)
        helpers.cancel_scope.cancel()
    best = max(finished, key=Branch.score)
    return {"text": best.context.text(), "given_up": count - len(finished)}
