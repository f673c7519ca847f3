"""Generate without end in a constant amount of memory: the first tokens and the last ones."""

from inferlet_py import Output, Queue, Sampler, get_model, inferlet, send


@inferlet
async def main(
    prompt: str = "Once upon a time",
    max_tokens: int = 2000,
    sink_pages: int = 1,
    window_pages: int = 7,
    temperature: float = 0.8,
    seed: int = 0,
) -> None:
    """Continue a prompt; each token sees the first pages of the text and the last ones alone.

    Args:
        prompt: The text to continue.
        max_tokens: Tokens to generate.
        sink_pages: Pages at the beginning that are always seen.
        window_pages: Pages at the end that are seen.
        temperature: 0 always takes the most likely token.
        seed: Of the draws.
    """
    model = get_model()
    fed = model.tokenize(prompt, special=True)
    output = Output(sampler=Sampler(temperature=temperature, top_p=0.95, seed=seed))
    with Queue() as queue:
        size = queue.kv_page_size
        pages = queue.alloc_kvpages(-(-len(fed) // size))
        position = slot = 0
        for _ in range(max_tokens):
            if slot + len(fed) > len(pages) * size:
                pages += queue.alloc_kvpages(1)
            if len(pages) > sink_pages + window_pages:
                pages.pop(sink_pages).close()
                slot -= size
            forward = queue.forward_text(
                fed,
                pages=pages,
                start=slot,
                positions=range(position, position + len(fed)),
                outputs=[output],
            )
            slot, position = slot + len(fed), position + len(fed)
            fed = list((await forward)[0].tokens)
            await send(model.detokenize(fed) or "\n")
