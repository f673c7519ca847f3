"""Guess a few tokens anyhow, and let the model correct all of them at once until they stay."""

from inferlet_py import Greedy, Output, Queue, inferlet, send


@inferlet
async def main(
    prompt: str = "Once upon a time", max_tokens: int = 64, window: int = 16
) -> dict[str, int]:
    """Continue a prompt with the tokens of greedy decoding, in at most as many steps.

    Args:
        prompt: The text to continue.
        max_tokens: Most tokens to generate.
        window: Tokens to correct at once.
    """
    with Queue() as queue:
        model = queue.model
        tokens = model.tokenize(prompt, special=True)
        start, end, is_ended = len(tokens), len(tokens) + max_tokens, False
        pages = queue.alloc_kvpages(-(-(end + window) // queue.kv_page_size))
        guesses = [tokens[-1]] * (window - 1)
        num_written = num_steps = 0
        while len(tokens) < end and not is_ended:
            rows = range(
                len(tokens) - num_written - 1, len(tokens) - num_written - 1 + window
            )
            forward = queue.forward_text(
                tokens[num_written:] + guesses,
                pages=pages,
                start=num_written,
                outputs=[Output(rows, Greedy())],
            )
            said = list((await forward)[0].tokens)
            num_steps += 1
            pairs = zip(guesses, said, strict=False)
            right = next((i for i, (a, b) in enumerate(pairs) if a != b), len(guesses))
            new = said[: right + 1][: end - len(tokens)]
            is_end = [token in model.info.eos_tokens for token in new]
            if is_ended := any(is_end):
                new = new[: is_end.index(True)]
            num_written = len(tokens) + right
            tokens += new
            rest = said[right + 1 :]  # a guess that was corrected is a better guess
            guesses = rest + [said[-1]] * (window - 1 - len(rest))
            await send(model.detokenize(new))
    return {"tokens": len(tokens) - start, "steps": num_steps}
