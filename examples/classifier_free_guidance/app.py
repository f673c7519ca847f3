"""Follow a prompt more closely, by leaning away from what the model says without it."""

import math
import random

from inferlet_py import Context, Distribution, gather, inferlet, send

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
    with Context() as guided, Context() as plain:
        await guided.fill(ASKED.format(prompt))
        await plain.fill(ASKED.format(without))
        for _ in range(max_tokens):
            asked, other = await gather(ctx.forward(top=256) for ctx in (guided, plain))
            weights = guide(asked, other, scale)
            (token,) = rng.choices(asked.token_ids, weights)
            if token in guided.model.info.eos_tokens:
                break
            guided.append([token])
            plain.append([token])
            await send(guided.model.detokenize([token]))
