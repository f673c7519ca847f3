"""Prefer what a large model finds more likely than a small one does."""

import math

from inferlet_py import Context, Distribution, gather, inferlet, send


def choose(
    expert: Distribution, amateur: Distribution, alpha: float, beta: float
) -> int:
    """Return the token whose probability the expert raises most, among its own likely ones."""
    small = dict(amateur)
    floor = min(small.values())  # what is not listed is no more likely than that
    scores = {
        token: (1 + beta) * math.log(prob)
        - beta * math.log(max(small.get(token, 0), floor, 1e-9))
        for token, prob in expert
        if prob >= alpha * expert.probs[0]
    }
    return max(scores, key=lambda token: scores[token])


@inferlet
async def main(
    prompt: str = "Once upon a time",
    amateur_model: str = "draft",
    max_tokens: int = 64,
    alpha: float = 0.1,
    beta: float = 0.5,
) -> None:
    """Continue a prompt.

    Args:
        prompt: The text to continue.
        amateur_model: Name of a smaller model with the same tokens.
        max_tokens: Most tokens to generate.
        alpha: Tokens less likely than this fraction of the most likely one are left out.
        beta: How much the smaller model counts; 0 is greedy decoding.
    """
    with Context() as expert, Context(amateur_model) as amateur:
        await expert.fill(prompt)
        await amateur.fill(prompt)
        for _ in range(max_tokens):
            # Both models compute at the same time.
            large, small = await gather(
                ctx.forward(top=256) for ctx in (expert, amateur)
            )
            token = choose(large, small, alpha, beta)
            if token in expert.model.info.eos_tokens:
                break
            expert.append([token])
            amateur.append([token])
            await send(expert.model.detokenize([token]))
