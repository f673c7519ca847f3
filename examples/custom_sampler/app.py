"""Write samplers in the program: min-p, Mirostat 2 and DRY, from the distribution alone."""

import math
from collections.abc import Sequence
from typing import Literal

from inferlet_py import Context, Processor, Sampler, inferlet

Weights = dict[int, float]
LOOP = " ".join(["one two three"] * 4)
PROMPT = f"<|im_start|>user\nRepeat exactly.\n{LOOP}<|im_end|>\n<|im_start|>assistant\n"
TOP = 256
"""Likely tokens to look at; what min-p keeps is among them."""


class MinP:
    """Keep what is at least a fraction as likely as the likeliest (Nguyen et al. 2024).

    The others begin with this: a distribution has no more than ``TOP`` tokens.
    """

    fraction = 0.1

    def keep(self, weights: Weights, _generated: Sequence[int]) -> Weights:
        """Return the weights of the tokens to draw from."""
        least = self.fraction * max(weights.values())
        return {token: weight for token, weight in weights.items() if weight >= least}

    def learn(self, share: float) -> None:
        """Take note of the share of the token that was drawn."""

    async def on_host(self, seed: int) -> tuple[Sampler, Processor | None]:
        """Return what does the same on the host."""
        return Sampler(min_p=self.fraction, seed=seed), None


class Dry(MinP):
    """Make what would prolong a repetition less likely, more so the longer it is."""

    multiplier, base, allowed_length = 0.8, 1.75, 2

    def keep(self, weights: Weights, generated: Sequence[int]) -> Weights:
        """Return the weights of the tokens to draw from."""
        for token, length in repetitions(generated).items():
            if length >= self.allowed_length and token in weights:
                penalty = self.multiplier * self.base ** (length - self.allowed_length)
                weights[token] *= math.exp(-penalty)
        return super().keep(weights, generated)

    async def on_host(self, seed: int) -> tuple[Sampler, Processor | None]:
        """Return what does the same on the host."""
        sampler, _ = await super().on_host(seed)
        processor = await Processor.create(
            dry_multiplier=self.multiplier,
            dry_base=self.base,
            dry_allowed_length=self.allowed_length,
        )
        return sampler, processor


class Mirostat(MinP):
    """Steer the surprise of the text, in bits a token, to a target (Basu et al. 2021)."""

    fraction = 0.02
    target, rate = 3.0, 0.1

    def __init__(self) -> None:
        self.limit = 2 * self.target

    def keep(self, weights: Weights, generated: Sequence[int]) -> Weights:
        """Return the weights of the tokens to draw from."""
        likely = super().keep(weights, generated)
        least = min(2**-self.limit * sum(likely.values()), max(likely.values()))
        return {token: weight for token, weight in likely.items() if weight >= least}

    def learn(self, share: float) -> None:
        """Take note of the share of the token that was drawn."""
        self.limit -= self.rate * (-math.log2(share) - self.target)

    async def on_host(self, seed: int) -> tuple[Sampler, Processor | None]:
        """Return what does the same on the host."""
        sampler, _ = await super().on_host(seed)
        processor = await Processor.create(
            mirostat_tau=self.target, mirostat_eta=self.rate
        )
        return sampler, processor


SAMPLERS = {"min_p": MinP, "dry": Dry, "mirostat": Mirostat}


def repetitions(tokens: Sequence[int]) -> dict[int, int]:
    """Return the tokens that would prolong a repetition, and how long that is by now."""
    found: dict[int, int] = {}
    for end in range(len(tokens) - 1):
        length = 0
        while length <= end and tokens[end - length] == tokens[-1 - length]:
            length += 1
        if length:
            found[tokens[end + 1]] = max(length, found.get(tokens[end + 1], 0))
    return found


def mix(state: int) -> int:
    """Return the next number of the generator SplitMix64, as the host's draws have it."""
    state = (state + 0x9E3779B97F4A7C15) % 2**64
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
    return state ^ state >> 31


def draw(weights: Weights, seed: int, position: int) -> int:
    """Return the token that the host would draw behind a position."""
    rest = (mix(mix(seed) + position) >> 11) / 2**53 * sum(weights.values())
    for token in sorted(weights):
        rest -= weights[token]
        if rest < 0:
            return token
    return max(weights)


@inferlet
async def main(
    sampler: Literal["min_p", "dry", "mirostat"] = "dry",
    prompt: str = PROMPT,
    max_tokens: int = 64,
    seed: int = 0,
    on_host: bool = False,
) -> str:
    """Continue a prompt.

    Args:
        sampler: How to choose tokens.
        prompt: The text to continue.
        max_tokens: Most tokens to generate.
        seed: Of the draws.
        on_host: Let the host do the same.
    """
    chosen, generated = SAMPLERS[sampler](), list[int]()
    async with Context() as ctx:
        await ctx.fill(prompt)
        if on_host:
            config, processor = await chosen.on_host(seed)
            return await ctx.generate(
                max_tokens=max_tokens, sampler=config, processor=processor
            ).text()
        while len(generated) < max_tokens:
            dist = await ctx.forward(top=TOP)
            kept = chosen.keep(dict(dist), generated)
            token = draw(kept, seed, len(ctx) - 1)
            if token in ctx.model.info.eos_tokens:
                break
            chosen.learn(kept[token] / sum(kept.values()))
            generated.append(token)
            ctx.append([token])
        return ctx.model.detokenize(generated)
