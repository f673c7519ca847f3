"""Keep the most likely texts of several, and let them share the pages of what they share."""

import math
from dataclasses import dataclass

from inferlet_py import Context, Distribution, inferlet, open_nursery


@dataclass
class Beam:
    """A text that may go on."""

    context: Context
    logprob: float = 0.0


@dataclass
class Result:
    """The most likely text that was found."""

    text: str
    logprob: float


async def run_all(beams: list[Beam], top: int) -> list[Distribution]:
    """Return what may come next in each beam; all are computed in one step."""
    found: dict[int, Distribution] = {}

    async def run(index: int) -> None:
        found[index] = await beams[index].context.forward(top=top)

    async with open_nursery() as nursery:
        for index in range(len(beams)):
            nursery.start_soon(run, index)
    return [found[index] for index in range(len(beams))]


@inferlet
async def main(
    prompt: str = "Once upon a time", width: int = 5, max_tokens: int = 24
) -> Result:
    """Continue a prompt by the most likely text of so many tokens, as far as a beam finds it.

    Args:
        prompt: The text to continue.
        width: Texts to keep at each step; 1 is greedy decoding.
        max_tokens: Tokens to generate.
    """
    root = Context()
    await root.fill(prompt)
    start, beams, ended = len(root), [Beam(root)], list[Beam]()
    for _ in range(max_tokens):
        dists = await run_all(beams, width + 1)
        options = [
            (beam.logprob + math.log(prob), beam.context, token)
            for beam, dist in zip(beams, dists, strict=True)
            for token, prob in dist
            if prob > 0
        ]
        options.sort(key=lambda option: -option[0])
        kept: list[Beam] = []
        for logprob, parent, token in options[:width]:
            beam = Beam(parent.fork(), logprob)
            is_end = token in root.model.info.eos_tokens
            if not is_end:
                beam.context.append([token])
            (ended if is_end else kept).append(beam)
        for beam in beams:
            beam.context.close()
        beams = kept
        best = max([*ended, *beams], key=lambda beam: beam.logprob)
        if best in ended:  # what goes on only becomes less likely
            break
    best = max([*ended, *beams], key=lambda beam: beam.logprob)
    text = root.model.detokenize(best.context.token_ids[start:])
    return Result(text, round(best.logprob, 4))
