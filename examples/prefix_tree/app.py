"""Answer many prompts that begin alike; every beginning is computed once."""

from inferlet_py import Context, Nursery, inferlet, open_nursery

NOTES = """\
- The code of Anna is 4821.
- Ben lives in Rome.
- Mila keeps the red kite."""
START = f"<|im_start|>user\nNotes:\n{NOTES}\nQuestion: "
END = "<|im_end|>\n<|im_start|>assistant\n"
PROMPTS = [
    f"{START}What is the code of Anna?{END}",
    f"{START}Where does Ben live?{END}",
    f"{START}Where does Ben live?{END}Ben lives in Rome.<|im_end|>\n"
    f"<|im_start|>user\nQuestion: What does Mila keep?{END}",
]


@inferlet
async def main(prompts: list[str] = PROMPTS, max_tokens: int = 32) -> list[str]:
    """Continue each of several prompts.

    Args:
        prompts: In any order; those that begin alike share what they have in common.
        max_tokens: Most tokens to generate for each.
    """
    texts = [""] * len(prompts)

    async def finish(ctx: Context, index: int) -> None:
        with ctx:
            texts[index] = await ctx.generate(max_tokens=max_tokens).text()

    async def grow(
        ctx: Context, tokens: dict[int, list[int]], nursery: Nursery
    ) -> None:
        """Let a context hold what all these have in common, and fork it where they part."""
        shared = 0
        while len({tuple(rest[: shared + 1]) for rest in tokens.values()}) == 1:
            if shared == max(len(rest) for rest in tokens.values()):
                break
            shared += 1
        first = next(iter(tokens.values()))
        await ctx.fill(first[:shared])
        branches: dict[int, dict[int, list[int]]] = {}
        for index, rest in tokens.items():
            if len(rest) == shared:
                nursery.start_soon(finish, ctx.fork(), index)
            else:
                branches.setdefault(rest[shared], {})[index] = rest[shared:]
        for branch in branches.values():
            nursery.start_soon(grow, ctx.fork(), branch, nursery)
        ctx.close()

    root = Context()
    tokens = {i: root.model.tokenize(text) for i, text in enumerate(prompts)}
    async with open_nursery() as nursery:
        await grow(root, tokens, nursery)
    return texts
