"""Ask which texts of a pattern the model finds most likely, instead of drawing some."""

import heapq
import math
from dataclasses import dataclass

from inferlet_py import Context, Grammar, Processor, inferlet

PROMPT = """\
<|im_start|>user
Classify the text.
Labels: positive, negative, neutral
Text: I love this kite.<|im_end|>
<|im_start|>assistant
"""


@dataclass
class Match:
    """A text that matches the pattern, and its log-probability among all texts whatever."""

    text: str
    logprob: float


@inferlet
async def main(
    prompt: str = PROMPT, pattern: str = "positive|negative|neutral", count: int = 3
) -> list[Match]:
    """Return the most likely matches, the best first, by a search that goes best first.

    Tokens that are not among the 256 most likely are left out.

    Args:
        prompt: The text that they continue.
        pattern: A regular expression for the whole continuation, up to its end.
        count: Matches to find.
    """
    root, found = Context(), list[Match]()
    await root.fill(prompt)
    start, ends = len(root), root.model.info.eos_tokens
    processor = await Processor.create(grammar=Grammar.regex(pattern))
    queue = [(0.0, 0, root, processor, False)]  # the second number orders what is equal
    number = 0
    while queue and len(found) < count:
        cost, _, ctx, processor, is_whole = heapq.heappop(queue)
        if is_whole:
            text = root.model.detokenize(ctx.token_ids[start:])
            found.append(Match(text, round(-cost, 4)))
            continue
        allowed = set(processor.allowed())
        for token, prob in await ctx.forward(top=256):
            if token not in allowed or prob == 0:
                continue
            child, branch = ctx.fork(), processor.fork()
            if token not in ends:
                child.append([token])
                branch.accept([token])
            number += 1
            entry = (cost - math.log(prob), number, child, branch, token in ends)
            heapq.heappush(queue, entry)
        processor.close()
        ctx.close()
    return found
