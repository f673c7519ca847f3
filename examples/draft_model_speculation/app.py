"""Let a small model guess the next tokens, and the large one check all guesses at once."""

from inferlet_py import Context, Greedy, Output, Queue, inferlet, send


@inferlet
async def main(
    prompt: str = "Once upon a time",
    draft_model: str = "draft",
    max_tokens: int = 64,
    num_drafted: int = 4,
) -> dict[str, int]:
    """Continue a prompt with the tokens of greedy decoding, in fewer steps of the large model.

    Args:
        prompt: The text to continue.
        draft_model: Name of a model with the same tokens.
        max_tokens: Most tokens to generate.
        num_drafted: Tokens to guess for each step.
    """
    draft = Context(draft_model)
    await draft.fill(prompt)
    num_written, num_steps, start = 0, 0, len(draft)
    end, is_ended = start + max_tokens, False
    with Queue() as queue:
        model = queue.model
        pages = queue.alloc_kvpages(-(-(end + num_drafted) // queue.kv_page_size))
        while len(draft) < end and not is_ended:
            num_certain = len(draft)
            guesses = draft.generate(max_tokens=num_drafted, stop_tokens=[])
            drafted = await guesses.tokens()
            rows = range(num_certain - num_written - 1, len(draft) - num_written)
            forward = queue.forward_text(
                draft.token_ids[num_written:],
                pages=pages,
                start=num_written,
                outputs=[Output(rows, Greedy())],
            )
            said = list((await forward)[0].tokens)
            pairs = zip(drafted, said, strict=False)
            right = next((i for i, (a, b) in enumerate(pairs) if a != b), len(drafted))
            new = said[: right + 1][: end - num_certain]
            is_end = [token in model.info.eos_tokens for token in new]
            if is_ended := any(is_end):
                new = new[: is_end.index(True)]
            draft.truncate(num_certain)
            draft.append(new)
            num_written, num_steps = num_certain + right, num_steps + 1
            await send(model.detokenize(new))
    return {"tokens": len(draft) - start, "steps": num_steps}
