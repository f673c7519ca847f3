"""A recursion of thought: a problem is split, its halves are solved at once, and put together."""

from inferlet_py import Context, gather, inferlet


@inferlet
async def main(shared: list[int], own: list[int], tokens: int, depth: int) -> int:
    """Return how many tokens were generated.

    Args:
        shared: What every question to the model begins with.
        own: The problem.
        tokens: Of each answer.
        depth: How often a problem is split.
    """
    count = 0

    async def ask(problem: list[int]) -> list[int]:
        nonlocal count
        with root.fork() as context:
            context.append(problem)
            generation = context.generate(max_tokens=tokens, stop_tokens=[])
            said = await generation.tokens()
        count += len(said)
        return said

    async def solve(problem: list[int], depth: int) -> list[int]:
        said = await ask(problem)
        if depth == 0:
            return said
        middle = len(said) // 2
        halves = [said[:middle], said[middle:]]
        first, second = await gather(solve(half, depth - 1) for half in halves)
        return await ask([*first, *second])

    async with Context() as root:
        await root.fill(shared, reuse=True)
        await solve(own, depth)
    return count
