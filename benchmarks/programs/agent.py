"""ReACT, or CodeACT: what the model has read stays while the tools work."""

import contextlib
import io

from inferlet_py import Context, http_get, inferlet


def run(code: str) -> str:
    """Return what code prints; the inferlet is its sandbox."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(code, {})
    return output.getvalue().strip()


@inferlet
async def main(
    shared: list[int],
    own: list[int],
    tools: str,
    calls: int,
    tokens: int,
    observed: int,
    code: str = "",
) -> int:
    """Return how many tokens were generated.

    Args:
        shared: What all agents begin with.
        own: What this one is asked.
        tools: Where they are.
        calls: Of tools.
        tokens: To generate before each call, and after the last.
        observed: Tokens of each answer.
        code: To run before each call, which gets what it prints.
    """
    count = 0
    async with Context() as ctx:
        await ctx.fill(shared, reuse=True)
        ctx.append(own)
        for number in range(calls + 1):
            generation = ctx.generate(max_tokens=tokens, stop_tokens=[])
            count += len(await generation.tokens())
            if number < calls:
                asked = run(code) if code else str(number)
                found = await http_get(f"{tools}/tool/{asked}")
                ctx.append(list((found.text().encode() * observed)[:observed]))
    return count
