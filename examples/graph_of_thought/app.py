"""Work on the parts of a question at once, and merge any two answers as soon as they are there."""

import re

from inferlet_py import Chat, Context, inferlet, open_nursery, send

NOTES = """\
- Mila keeps the red kite.
- Ben lives in Rome.
- The green boat belongs to Leo.
- Anna keeps the silver bell.
- Tom keeps the blue drum."""


@inferlet
async def main(notes: str = NOTES) -> str:
    """List everything that somebody keeps or owns.

    Args:
        notes: One a line, as `- Mila keeps the red kite.`
    """
    ready: list[str] = []

    async def add(part: str) -> None:
        """Merge a part with another one that is ready, or let it wait for one."""
        if not ready:
            ready.append(part)
            return
        parts = f"1. {ready.pop()}\n2. {part}"
        with Chat() as chat:
            merged = await chat.user(f"Merge the parts.\n{parts}").reply().text()
        await send(f"merge: {merged}\n")
        await add(merged)

    async def find(question: str) -> None:
        with root.fork() as ctx:
            await ctx.fill(f" {question}<|im_end|>\n<|im_start|>assistant\n")
            answer = await ctx.generate(max_tokens=32).text()
        await send(f"answer: {answer}\n")
        if thing := re.search(r"keeps the (.+)\.|The (.+) belongs", answer):
            await add(thing[1] or thing[2])

    async with Context() as root, open_nursery() as nursery:
        await root.fill(f"<|im_start|>user\nNotes:\n{notes}\nQuestion:")
        for name in re.findall(r"- (\w+) keeps", notes):
            nursery.start_soon(find, f"What does {name} keep?")
        for name in re.findall(r"belongs to (\w+)", notes):
            nursery.start_soon(find, f"What belongs to {name}?")
    return ready[0] if ready else ""
