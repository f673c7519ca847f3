"""Search a tree of thoughts: propose several next steps, judge them, go on with the best."""

from dataclasses import dataclass

from inferlet_py import (
    Context,
    Sampler,
    at_pattern,
    inferlet,
    open_nursery,
    send,
    until,
)

PROPOSE = "<|im_start|>user\nRepeat exactly.\n{}<|im_end|>\n<|im_start|>assistant\n"
QUESTION = "<|im_start|>user\nQuestion: Repeat: {}\nCandidate:"
VERDICT = " {}\nIs it right? Say yes or no.<|im_end|>\n<|im_start|>assistant\n"


@dataclass
class Thought:
    """A partial answer: the context that ends with it, and how right it looks."""

    context: Context
    answer: str
    value: float = 0.0


async def propose(parent: Thought, sampler: Sampler) -> Thought:
    """Return a thought that goes on by a word; the two share their pages."""
    with parent.context.fork() as draft:
        generation = draft.generate(max_tokens=12, sampler=sampler)
        text = await until(generation, at_pattern(r"\S\s")).text()
    word = (text.split() or [""])[0]
    child = parent.context.fork()
    await child.fill(f" {word}" if parent.answer else word)
    return Thought(child, f"{parent.answer} {word}".strip())


async def judge(thought: Thought, question: Context) -> None:
    """Let the value of a thought be the probability that the model says yes to it."""
    with question.fork() as ctx:
        await ctx.fill(VERDICT.format(thought.answer))
        dist = await ctx.forward()
        thought.value = dist.prob(ctx.model.tokenize("yes")[0])


@inferlet
async def main(
    words: str = "nolzi shirtro golmep",
    branches: int = 4,
    keep: int = 2,
    temperature: float = 1.6,
    seed: int = 4,
) -> str:
    """Repeat words, though each of them is drawn so hot that it is often wrong.

    Args:
        words: To be repeated, up to four.
        branches: Thoughts to propose after each one that is kept.
        keep: Thoughts to keep at each level.
        temperature: Of the proposals.
        seed: Of the proposals.
    """
    root = Context()
    await root.fill(PROPOSE.format(words))
    level = [Thought(root, "")]
    for depth in range(1, len(words.split()) + 1):
        question = Context()
        await question.fill(QUESTION.format(" ".join(words.split()[:depth])))
        proposed: dict[str, Thought] = {}  # thoughts that say the same are one

        async def grow(
            parent: Thought,
            index: int,
            question: Context = question,
            proposed: dict[str, Thought] = proposed,
        ) -> None:
            sampler = Sampler(temperature=temperature, seed=seed + index)
            thought = await propose(parent, sampler)
            if proposed.setdefault(thought.answer, thought) is thought:
                await judge(thought, question)

        async with open_nursery() as nursery:
            for index in range(len(level) * branches):
                nursery.start_soon(grow, level[index // branches], index)
        ranked = sorted(proposed.values(), key=lambda thought: -thought.value)
        for dropped in [*level, *ranked[keep:]]:
            dropped.context.close()
        question.close()
        level = ranked[:keep]
        found = ", ".join(f"{t.answer!r} {t.value:.2f}" for t in ranked)
        await send(f"{depth}: {found}\n")
    return level[0].answer
