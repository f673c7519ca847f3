"""Continue a prompt and stream the text to the client."""

from inferlet_py import Context, Sampler, inferlet, send


@inferlet
async def main(
    prompt: str = "Once upon a time", max_tokens: int = 64, temperature: float = 0.0
) -> None:
    """Continue a prompt.

    Args:
        prompt: The text to continue.
        max_tokens: Most tokens to generate.
        temperature: 0 always takes the most likely token; higher is more varied.
    """
    async with Context() as ctx:
        await ctx.fill(prompt)
        await send(prompt)
        sampler = Sampler(temperature=temperature)
        await ctx.generate(max_tokens=max_tokens, sampler=sampler).send()
