"""Look at many notes from afar, and read those closely that the question seems to be about."""

import math

from inferlet_py import Greedy, Output, Outputs, Queue, inferlet, send

NOTES = """- Ben lives in Rome.\n- The code of Anna is 4821.\n- Mila keeps the red kite.
- Zoe lives in Oslo.\n- The code of Tom is 7350.\n- Leo keeps the blue drum."""
ALL, ASKED = -1, -2


@inferlet
async def main(
    question: str = "What does Mila keep?", notes: str = NOTES, keep: int = 2
) -> None:
    """Answer a question about notes, each of which sees itself alone.

    Args:
        question: As `What is the code of Anna?` or `What does Mila keep?`
        notes: One a line.
        keep: Notes to read closely.
    """
    # Of each token: it sees those before it that are of its own part, and of ALL.
    parts: list[int] = []

    async def run(tokens: list[int], part: int, top: int = 0) -> Outputs:
        start = len(parts)
        parts.extend([part] * len(tokens))
        seen = [slot_part in (ALL, part) for slot_part in parts]
        mask = [seen[: end + 1] for end in range(start, len(parts))]
        output = Output(range(len(tokens)), Greedy(), top)
        forward = queue.forward_text(
            tokens, pages=pages, start=start, mask=mask, outputs=[output]
        )
        return (await forward)[0]

    with Queue() as queue:
        tokenize, pages = queue.model.tokenize, queue.alloc_kvpages(256)
        asked = tokenize(f"Question: {question}<|im_end|>\n<|im_start|>assistant\n")
        await run(tokenize("<|im_start|>user\nNotes:\n"), ALL)
        looks: list[tuple[float, slice]] = []
        for index, line in enumerate(notes.splitlines()):
            note, first = tokenize(f"{line}\n"), len(parts)
            dists = (await run(note + asked, index, top=256)).dists[len(note) : -1]
            pairs = zip(dists, asked[1:], strict=True)
            score = sum(math.log(dist.prob(token) or 1e-9) for dist, token in pairs)
            looks.append((score, slice(first, first + len(note))))
        for _, span in sorted(looks, key=lambda look: -look[0])[:keep]:
            parts[span] = [ALL] * (span.stop - span.start)  # from now on it is seen
        fed = asked
        while fed[-1] not in queue.model.info.eos_tokens:
            fed = [(await run(fed, ASKED)).tokens[-1]]
            await send(queue.model.detokenize(fed))
