"""Follow a prompt more closely, by leaning away from what the model says without it."""

import math
import random

from inferlet_py import Context, Distribution, inferlet, open_nursery, send

ASKED = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def guide(guided: Distribution, plain: Distribution, scale: float) -> list[float]:
    """Return weights of the guided tokens: ``plain * (guided / plain) ** scale``."""
    others = dict(plain)
    floor = max(min(others.values()), 1e-9)  # what is not listed is no more likely
    logits = [
        (1 - scale) * math.log(max(others.get(token, 0), floor))
        + scale * math.log(max(prob, 1e-9))
        for token, prob in guided
    ]
    return [math.exp(logit - max(logits)) for logit in logits]


@inferlet
async def main(
    prompt: str = "Tell me a story about Mila and a red kite.",
    without: str = "Tell me a story.",
    scale: float = 1.5,
    max_tokens: int = 100,
    seed: int = 0,
) -> None:
    """Answer a prompt.

    Args:
        prompt: What to follow.
        without: The same, without what is to be followed.
        scale: 1 is ordinary sampling; higher follows the prompt more.
        max_tokens: Most tokens to generate.
        seed: Of the draws.
    """
    rng = random.Random(seed)
    dists: dict[Context, Distribution] = {}

    async def run(ctx: Context) -> None:
        dists[ctx] = await ctx.forward(top=256)

    with Context() as guided, Context() as plain:
        await guided.fill(ASKED.format(prompt))
        await plain.fill(ASKED.format(without))
        for _ in range(max_tokens):
            async with open_nursery() as nursery:
                nursery.start_soon(run, guided)
                nursery.start_soon(run, plain)
            weights = guide(dists[guided], dists[plain], scale)
            (token,) = rng.choices(dists[guided].token_ids, weights)
            if token in guided.model.info.eos_tokens:
                break
            guided.append([token])
            plain.append([token])
            await send(guided.model.detokenize([token]))
