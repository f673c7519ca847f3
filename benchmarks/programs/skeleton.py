"""A skeleton of thought: an outline first, and then all of its points at once."""

from inferlet_py import Context, inferlet, open_nursery


@inferlet
async def main(
    shared: list[int], own: list[int], points: list[list[int]], tokens: int
) -> int:
    """Return how many tokens were generated.

    Args:
        shared: What all texts begin with.
        own: What this one is about.
        points: What asks for each point of the outline.
        tokens: Of the outline, and of each point.
    """
    count = 0

    async def expand(point: list[int]) -> None:
        nonlocal count
        with outline.fork() as context:
            context.append(point)
            generation = context.generate(max_tokens=tokens, stop_tokens=[])
            said = await generation.tokens()
        count += len(said)

    async with Context() as outline:
        await outline.fill([*shared, *own], reuse=True)
        generation = outline.generate(max_tokens=tokens, stop_tokens=[])
        count += len(await generation.tokens())
        async with open_nursery() as nursery:
            for point in points:
                nursery.start_soon(expand, point)
    return count
