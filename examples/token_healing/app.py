"""Let a prompt end within a word: its last token is generated again, as the model would."""

import re

from inferlet_py import Context, inferlet


@inferlet
async def main(
    prompt: str = "Once upon a time, there was a curious chi",
    max_tokens: int = 24,
    num_healed: int = 2,
) -> str:
    """Continue a prompt, and return the whole text.

    Args:
        prompt: The text to continue, which may end within a word.
        max_tokens: Most tokens to generate.
        num_healed: Tokens at the end of the prompt to choose anew; 0 heals nothing.
    """
    async with Context() as ctx:
        await ctx.fill(prompt)
        ctx.truncate(max(len(ctx) - num_healed, 1))
        kept = ctx.text()
        # Any tokens may come, so long as the prompt's own characters are what they begin with.
        pattern = re.escape(prompt[len(kept) :]) + r"(.|\n)*"
        generation = ctx.generate(max_tokens=max_tokens + num_healed, regex=pattern)
        return kept + await generation.text()
