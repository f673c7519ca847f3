"""Completes a prompt, token by token."""

from inferlet_py import Context, inferlet, send


@inferlet
async def main(prompt: list[int], tokens: int) -> int:
    """Return how many tokens were generated; each chunk is sent as it comes.

    Args:
        prompt: Full pages of it are shared with others that begin alike.
        tokens: To generate.
    """
    async with Context() as ctx:
        await ctx.fill(prompt, reuse=True)
        generation = ctx.generate(max_tokens=tokens, stop_tokens=[])
        async for chunk in generation:
            await send(" ".join(map(str, chunk.token_ids)))
        return len(generation.token_ids)
