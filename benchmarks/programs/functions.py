"""An agent that calls functions, with three optimisations to be switched one by one."""

from inferlet_py import Context, http_get, inferlet, open_nursery


@inferlet
async def main(
    shared: list[int],
    own: list[int],
    tools: str,
    calls: int,
    tokens: int,
    observed: int,
    cache: bool = False,
    overlap: bool = False,
    drop: bool = False,
) -> int:
    """Return how many tokens were generated.

    Args:
        shared: The documentation, as long for each of the functions.
        own: What this agent is asked.
        tools: Where they are.
        calls: As many as there are functions.
        tokens: To generate for each call, and for the answer.
        observed: Tokens of each result.
        cache: Keep what the model has read of the documentation for others.
        overlap: Start a call as soon as it is written, while the model writes the next.
        drop: Drop what was said about a function once it is called.
    """
    count, results = 0, dict[int, list[int]]()

    async def call(number: int) -> None:
        found = await http_get(f"{tools}/tool/{number}")
        results[number] = list((found.text().encode() * observed)[:observed])

    async with Context() as ctx:
        await ctx.fill(shared, reuse=cache)
        ctx.append(own)
        async with open_nursery() as nursery:
            for number in range(calls):
                generation = ctx.generate(max_tokens=tokens, stop_tokens=[])
                count += len(await generation.tokens())
                if overlap:
                    nursery.start_soon(call, number)
                else:
                    await call(number)
                    ctx.append(results[number])
                if drop:
                    size = len(shared) // calls
                    await ctx.drop(number * size, (number + 1) * size)
        if overlap:
            for number in range(calls):
                ctx.append(results[number])
        generation = ctx.generate(max_tokens=tokens, stop_tokens=[])
        return count + len(await generation.tokens())
