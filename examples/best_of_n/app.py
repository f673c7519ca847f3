"""Draw several answers at once, let the model judge each, and keep the best one."""

from dataclasses import dataclass

from inferlet_py import Chat, Sampler, gather, inferlet


@dataclass
class Answer:
    """An answer, and the probability that the model calls it right."""

    text: str
    score: float


async def judge(question: str, candidate: str) -> float:
    """Return the probability that the model says yes to a candidate."""
    asked = f"Question: {question}\nCandidate: {candidate}\nIs it right? Say yes or no."
    with Chat() as chat:
        await chat.user(asked).prepare()
        dist = await chat.context.forward()
        return round(dist.prob(chat.model.tokenize("yes")[0]), 4)


@inferlet
async def main(
    words: str = "nolzi shirtro golmep",
    count: int = 8,
    temperature: float = 2.0,
    seed: int = 0,
) -> list[Answer]:
    """Repeat words, as well as hot draws allow, and return all answers, the best first.

    Args:
        words: To be repeated.
        count: Answers to draw; they share the pages of the prompt.
        temperature: Of the draws.
        seed: Of the draws.
    """

    async def draw(index: int) -> Answer:
        with chat.fork() as branch:
            sampler = Sampler(temperature=temperature, seed=seed + index)
            text = await branch.reply(max_tokens=24, sampler=sampler).text()
        return Answer(text, await judge(f"Repeat: {words}", text))

    with Chat() as chat:
        await chat.user(f"Repeat exactly.\n{words}").prepare()
        answers = await gather(map(draw, range(count)))
    return sorted(answers, key=lambda answer: -answer.score)
