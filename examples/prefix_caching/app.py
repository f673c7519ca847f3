"""Keep the keys and values of a long prompt on the server, and answer questions about it."""

import hashlib

from inferlet_py import Context, NotFoundError, inferlet, send

NOTES = """\
- The code of Anna is 4821.
- Ben lives in Rome.
- Mila keeps the red kite.
- The green boat belongs to Leo."""


async def open_prefix(prompt: str) -> Context:
    """Return a context that holds the prompt, which is computed if nobody has done so."""
    name = f"prefix/{hashlib.sha256(prompt.encode()).hexdigest()}"
    try:
        return Context.from_export(name)
    except NotFoundError:
        context = Context()
        await context.fill(prompt)
        context.export(name, persistent=True)
        return context


@inferlet
async def main(question: str = "Where does Ben live?", notes: str = NOTES) -> None:
    """Answer a question about notes, which are computed at the first question alone.

    Args:
        question: As `What is the code of Anna?` or `What does Mila keep?`
        notes: One a line.
    """
    prompt = f"<|im_start|>user\nNotes:\n{notes}\n"
    async with await open_prefix(prompt) as ctx:
        await ctx.fill(f"Question: {question}<|im_end|>\n<|im_start|>assistant\n")
        await send(await ctx.generate(max_tokens=32).text())
