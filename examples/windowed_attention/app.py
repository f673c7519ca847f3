"""Let each token see so many tokens before it and no others, and give back what none will see."""

from inferlet_py import Greedy, Output, Queue, inferlet, send

PROMPT = (
    "Once upon a time, there was a curious child named Ivan. Ivan had a yellow cup."
)


@inferlet
async def main(
    prompt: str = PROMPT, max_tokens: int = 128, window: int = 48
) -> dict[str, int]:
    """Continue a prompt.

    Args:
        prompt: The text to continue.
        max_tokens: Most tokens to generate.
        window: Tokens that each token sees, itself included.
    """
    with Queue() as queue:
        model, size = queue.model, queue.kv_page_size
        fed = model.tokenize(prompt, special=True)
        pages = queue.alloc_kvpages(-(-len(fed) // size))
        num_dropped = position = num_generated = 0  # the first in tokens, off the front
        for _ in range(max_tokens):
            while num_dropped + size <= position + 1 - window:
                pages.pop(0).close()
                num_dropped += size
            start, end = position - num_dropped, position - num_dropped + len(fed)
            if end > len(pages) * size:
                pages += queue.alloc_kvpages(1)
            mask = [
                [row - window < slot <= row for slot in range(end)]
                for row in range(start, end)
            ]
            forward = queue.forward_text(
                fed,
                pages=pages,
                start=start,
                positions=range(position, position + len(fed)),
                mask=mask,
                outputs=[Output(sampler=Greedy())],
            )
            position += len(fed)
            fed = list((await forward)[0].tokens)
            if fed[0] in model.info.eos_tokens:
                break
            num_generated += 1
            await send(model.detokenize(fed))
        return {"tokens": num_generated, "pages": len(pages)}
