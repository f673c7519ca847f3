"""Draw several answers at once, and take the one that most of them agree on."""

from collections import Counter

from inferlet_py import Chat, Sampler, gather, inferlet, send

NOTES = """\
- The code of Anna is 4821.
- The code of Tom is 7350.
- Mila keeps the red kite."""


@inferlet
async def main(
    question: str = "What is the code of Tom?",
    count: int = 9,
    temperature: float = 1.5,
    seed: int = 0,
    notes: str = NOTES,
) -> str:
    """Answer a question about notes by majority.

    Args:
        question: As `What is the code of Anna?` or `What does Mila keep?`
        count: Answers to draw; they share the pages of the prompt.
        temperature: Of the draws.
        seed: Of the draws.
        notes: One a line.
    """

    async def draw(index: int) -> str:
        with chat.fork() as branch:
            sampler = Sampler(temperature=temperature, seed=seed + index)
            return await branch.reply(max_tokens=32, sampler=sampler).text()

    with Chat() as chat:
        await chat.user(f"Notes:\n{notes}\nQuestion: {question}").prepare()
        votes = Counter(await gather(map(draw, range(count))))
    for answer, number in votes.most_common():
        await send(f"{number} x {answer}\n")
    return votes.most_common(1)[0][0]
