"""Guess the next tokens from what the text has said before, and check all guesses at once."""

from inferlet_py import Greedy, Output, Queue, get_model, inferlet, send

PROMPT = """\
<|im_start|>user
Repeat exactly.
coat britho orange ladder stilexzu kasmehan plaxlenbir mountain bridge Anna chair drixpivox black 86 303 grensturvol stone<|im_end|>
<|im_start|>assistant
"""


def look_up(tokens: list[int], ngram: int, count: int) -> list[int]:
    """Return what followed the last tokens where they stood before, the latest first."""
    last = tokens[-ngram:]
    for start in range(len(tokens) - ngram - 1, -1, -1):
        if tokens[start : start + ngram] == last:
            return tokens[start + ngram : start + ngram + count]
    return []


@inferlet
async def main(
    prompt: str = PROMPT, max_tokens: int = 64, num_drafted: int = 4, ngram: int = 2
) -> dict[str, int]:
    """Continue a prompt with the tokens of greedy decoding, in fewer steps.

    Args:
        prompt: The text to continue.
        max_tokens: Most tokens to generate.
        num_drafted: Most tokens to guess for each step.
        ngram: How many tokens have to stand there again for a guess.
    """
    model = get_model()
    tokens = model.tokenize(prompt, special=True)
    end = len(tokens) + max_tokens
    num_written = num_steps = num_generated = 0
    with Queue() as queue:
        pages = queue.alloc_kvpages(-(-(end + num_drafted) // queue.kv_page_size))
        while len(tokens) < end:
            drafted = look_up(tokens, ngram, num_drafted)
            row = len(tokens) - num_written - 1  # the last token that is certain
            output = Output(range(row, row + len(drafted) + 1), Greedy())
            fed = tokens[num_written:] + drafted
            forward = queue.forward_text(
                fed, pages=pages, start=num_written, outputs=[output]
            )
            said = (await forward)[0].tokens
            right = 0
            while right < len(drafted) and drafted[right] == said[right]:
                right += 1
            num_written = len(tokens) + right  # what was wrong is written over
            new = list(said[: right + 1])[: end - len(tokens)]
            stops = [i for i, token in enumerate(new) if token in model.info.eos_tokens]
            new = new[: stops[0]] if stops else new
            tokens += new
            num_steps += 1
            num_generated += len(new)
            await send(model.detokenize(new))
            if stops:
                break
    return {"tokens": num_generated, "steps": num_steps}
