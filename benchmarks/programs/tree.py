"""A tree of thoughts: each that is kept is gone on with twice, and the likeliest are kept."""

from dataclasses import dataclass

from inferlet_py import Context, Sampler, inferlet, open_nursery


@dataclass
class Thought:
    """How far it is thought, and how much the model makes of it."""

    context: Context
    value: float = 0.0


@inferlet
async def main(
    shared: list[int],
    own: list[int],
    step: list[int],
    judge: list[int],
    tokens: int,
    depth: int,
    branches: int = 2,
    keep: int = 2,
) -> int:
    """Return how many tokens were generated, values included.

    Args:
        shared: What all trees begin with.
        own: What this one is asked.
        step: Asks for the next thought.
        judge: Asks what a thought is worth.
        tokens: Of each thought.
        depth: Thoughts in a row.
        branches: Thoughts after each that is kept.
        keep: Thoughts to go on with.
    """
    count = 0
    sampler = Sampler(temperature=1.0)

    async def grow(parent: Thought, level: list[Thought]) -> None:
        nonlocal count
        context = parent.context.fork()
        generation = context.generate(
            max_tokens=tokens, sampler=sampler, stop_tokens=[]
        )
        said = len(await generation.tokens())
        with context.fork() as question:
            question.append(judge)
            distribution = await question.forward(top=1)
        count += said + 1
        level.append(Thought(context, distribution.prob(distribution.argmax())))

    root = Context()
    await root.fill([*shared, *own], reuse=True)
    thoughts = [Thought(root)]
    for _ in range(depth):
        level: list[Thought] = []
        async with open_nursery() as nursery:
            for parent in thoughts:
                parent.context.append(step)
                for _ in range(branches):
                    nursery.start_soon(grow, parent, level)
        level.sort(key=lambda thought: -thought.value)
        for dropped in [*thoughts, *level[keep:]]:
            dropped.context.close()
        thoughts = level[:keep]
    return count
