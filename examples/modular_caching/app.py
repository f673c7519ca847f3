"""Compute parts of prompts each on its own, and put them together in any combination."""

from inferlet_py import Greedy, KvPage, NotFoundError, Output, Queue, inferlet, send

MODULES = {
    "start": "<|im_start|>user\nNotes:\n",
    "codes": "- The code of Anna is 4821.\n- The code of Tom is 7350.\n",
    "homes": "- Ben lives in Rome.\n- Zoe lives in Oslo.\n",
    "things": "- Mila keeps the red kite.\n- Leo keeps the blue drum.\n",
}
SPAN = 64
"""Positions that each module may take: so a module stands at the same ones in every prompt."""


async def open_module(queue: Queue, name: str) -> list[KvPage]:
    """Return the pages of a module, which is computed if nobody has done so."""
    try:
        return queue.import_kvpages(f"module/{name}")
    except NotFoundError:
        tokens = queue.model.tokenize(MODULES[name])
        pages = queue.alloc_kvpages(-(-len(tokens) // queue.kv_page_size))
        first = SPAN * list(MODULES).index(name)
        positions = range(first, first + len(tokens))
        await queue.forward_text(tokens, pages=pages, positions=positions)
        queue.export_kvpages(pages, f"module/{name}", persistent=True)
        return pages


@inferlet
async def main(
    question: str = "Where does Ben live?",
    modules: list[str] = ["start", "homes"],  # noqa: B006 - an argument, never changed
    max_tokens: int = 32,
) -> None:
    """Answer a question about some notes.

    Args:
        question: As `What is the code of Anna?` or `What does Mila keep?`
        modules: Some of `start`, `codes`, `homes` and `things`, in this order.
        max_tokens: Most tokens to generate.
    """
    asked = f"Question: {question}<|im_end|>\n<|im_start|>assistant\n"
    with Queue() as queue:
        model, pages = queue.model, list[KvPage]()
        for name in modules:
            pages += await open_module(queue, name)
        slot, fed = len(pages) * queue.kv_page_size, model.tokenize(asked)
        num_slots = slot + len(fed) + max_tokens
        pages += queue.alloc_kvpages(-(-(num_slots - slot) // queue.kv_page_size))
        position = SPAN * len(MODULES)
        for _ in range(max_tokens):
            positions = range(position, position + len(fed))
            forward = queue.forward_text(
                fed,
                pages=pages,
                start=slot,
                positions=positions,
                outputs=[Output(sampler=Greedy())],
            )
            slot, position = slot + len(fed), position + len(fed)
            fed = list((await forward)[0].tokens)
            if fed[0] in model.info.eos_tokens:
                break
            await send(model.detokenize(fed))
