"""A graph of thoughts: proposals of different lengths, of which any two are merged when they are there."""

from inferlet_py import Context, inferlet, open_nursery


@inferlet
async def main(
    shared: list[int], own: list[int], proposals: list[int], tokens: int
) -> int:
    """Return how many tokens were generated.

    Args:
        shared: What all graphs begin with.
        own: What this one is asked.
        proposals: Tokens of each proposal.
        tokens: Of each merged thought.
    """
    count = 0
    ready: list[list[int]] = []

    async def think(given: list[int], length: int) -> None:
        nonlocal count
        with root.fork() as context:
            context.append(given)
            generation = context.generate(max_tokens=length, stop_tokens=[])
            said = await generation.tokens()
        count += len(said)
        if ready:
            await think([*ready.pop(), *said], tokens)
        else:
            ready.append(said)

    async with Context() as root:
        await root.fill([*shared, *own], reuse=True)
        async with open_nursery() as nursery:
            for length in proposals:
                nursery.start_soon(think, [], length)
    return count
