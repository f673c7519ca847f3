"""Mark a text by its choice of words, and tell later whether a text is marked."""

import itertools
import math
import random
from dataclasses import dataclass

from inferlet_py import Context, get_model, inferlet


@dataclass
class Report:
    """A text, and by how many standard deviations it has more green tokens than chance."""

    text: str
    z_score: float


def green_tokens(previous: int, *, key: int, share: float) -> set[int]:
    """Return the tokens that are green behind another one: the key shuffles the vocabulary."""
    size = get_model().info.vocab_size
    rng = random.Random(key * size + previous)
    return set(rng.sample(range(size), int(share * size)))


def z_score(tokens: list[int], *, key: int, share: float) -> float:
    """Return how far the number of green tokens is from that of any other text."""
    pairs = list(itertools.pairwise(tokens))
    green = sum(t in green_tokens(p, key=key, share=share) for p, t in pairs)
    deviation = math.sqrt(len(pairs) * share * (1 - share))
    return round((green - share * len(pairs)) / deviation, 2)


@inferlet
async def main(
    prompt: str = "Once upon a time",
    detect: str = "",
    max_tokens: int = 300,
    strength: float = 4.0,
    share: float = 0.5,
    key: int = 15485863,
    seed: int = 0,
) -> Report:
    """Write a marked text, or look for the mark in one.

    Args:
        prompt: The text to continue.
        detect: A text to look at instead.
        max_tokens: Tokens to generate.
        strength: What is added to the logits of green tokens; 0 marks nothing.
        share: Of all tokens, how many are green behind each token.
        key: Who does not know it cannot see the mark.
        seed: Of the draws.
    """
    if detect:
        tokens = get_model().tokenize(detect)
        return Report(detect, z_score(tokens, key=key, share=share))
    rng, boost = random.Random(seed), math.exp(strength)
    async with Context() as ctx:
        await ctx.fill(prompt)
        start = len(ctx)
        for _ in range(max_tokens):
            dist = await ctx.forward(top=256)
            green = green_tokens(ctx.token_ids[-1], key=key, share=share)
            weights = [p * boost if t in green else p for t, p in dist]
            ctx.append(rng.choices(dist.token_ids, weights))
        tokens = ctx.token_ids[start:]
        text = ctx.model.detokenize(tokens)
    return Report(text, z_score(tokens, key=key, share=share))
