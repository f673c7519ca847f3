"""Let the model split a problem until the parts are easy, and combine their answers."""

from inferlet_py import Chat, gather, inferlet, send


async def ask(question: str) -> tuple[str, str]:
    """Return what the model does with a question, `Split` or `Answer`, and with what."""
    with Chat() as chat:
        reply = await chat.user(question).reply(max_tokens=256).text()
    verb, _, rest = reply.partition(": ")
    await send(f"{question!r} -> {reply}\n")
    return verb, rest


async def solve(task: str, items: str, depth: int) -> str:
    """Return the answer to a task; parts of it are solved at the same time."""
    verb, rest = await ask(f"{task}: {items}")
    parts = rest.split(" | ")
    if verb != "Split" or len(parts) < 2 or depth == 0:
        return rest
    answers = await gather(solve(task, part, depth - 1) for part in parts)
    _, combined = await ask(f"Combine: {' | '.join(answers)}\nTask: {task}")
    return combined


@inferlet
async def main(
    task: str = "Reverse", items: str = "nolzi shirtro golmep tosbi", max_depth: int = 8
) -> str:
    """Solve a task by recursion.

    Args:
        task: `Reverse`, of words, or `Largest`, of numbers.
        items: Separated by spaces.
        max_depth: How deep the recursion may go.
    """
    return await solve(task, items, max_depth)
