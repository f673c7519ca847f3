"""A conversation that gives its pages away between turns, and computes nothing twice."""

from collections.abc import AsyncIterator, Sequence
from typing import Literal

from inferlet_py import (
    Context,
    NotFoundError,
    debug_query,
    get_model,
    inferlet,
    messages,
    send,
    suspend_pages,
)

TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def come_back(name: str) -> Context:
    """Return the context of a conversation; an empty one if there is none of that name.

    What was said is computed again where the server was started again since.
    """
    try:
        return Context.from_export(f"session/{name}", refill=True)
    except NotFoundError:
        return Context()


async def lines(say: Sequence[str]) -> AsyncIterator[str]:
    """Yield what the client says: these, or else its messages, which may take it hours."""
    for text in say:
        yield text
    if not say:
        async for message in messages():
            yield str(message)


@inferlet
async def main(
    say: list[str] = ["My name is Ivan.", "What is my name?"],  # noqa: B006 - never changed
    name: str = "ivan",
    park: Literal["export", "suspend"] = "export",
    max_tokens: int = 48,
) -> list[int]:
    """Converse, and return how many pages were held on the device while nobody spoke.

    Args:
        say: What to say in each turn; if empty, each message of the client is a turn.
        name: Of the conversation, which goes on wherever it is asked for again.
        park: Leave the pages under that name, also for later runs, or move them to host
            memory.
        max_tokens: Most tokens of a reply.
    """
    held, ctx = list[int](), None
    async for text in lines(say):
        if ctx is None:
            ctx = come_back(name)
        await ctx.fill(("<|im_end|>\n" if len(ctx) else "") + TURN.format(text))
        await send(await ctx.generate(max_tokens=max_tokens).text() + "\n")
        if park == "suspend":
            await suspend_pages()
        else:
            ctx.export(f"session/{name}", persistent=True)
            ctx.close()
            ctx = None
        held.append(debug_query("pages")[get_model().name]["on_device"])
    return held
