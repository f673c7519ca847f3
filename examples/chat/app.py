"""Chat with a model: roles, replies as they are written, and a history that is bounded."""

from collections.abc import AsyncIterator, Sequence

from inferlet_py import Chat, inferlet, messages, send


async def lines(say: Sequence[str]) -> AsyncIterator[str]:
    """Yield what the client says: these, or else its messages."""
    for text in say:
        yield text
    if not say:
        async for message in messages():
            yield str(message).strip()


@inferlet
async def main(
    say: list[str] = [],  # noqa: B006 - an argument, never changed
    system: str = "You are Pie, a small helpful assistant.",
    max_context: int = 512,
    max_tokens: int = 128,
) -> None:
    """Reply to each line; `/reset` forgets what was said, `/history` tells what is left of it.

    Args:
        say: Lines to reply to; if there are none, each message of the client is one.
        system: What the system message says.
        max_context: Most tokens that a reply continues; the oldest turns are dropped.
        max_tokens: Most tokens of a reply.
    """
    async with Chat(system) as chat:
        async for line in lines(say):
            if line == "/reset":
                del chat.messages[1:]
            elif line == "/history":
                num_messages, num_tokens = len(chat.messages), chat.count_tokens()
                await send(f"[{num_messages} messages, {num_tokens} tokens]\n")
            elif line:
                chat.user(line)
                while chat.count_tokens() > max_context and len(chat.messages) > 2:
                    del chat.messages[1:3]  # a question with its reply
                async for piece in chat.reply(max_tokens=max_tokens):
                    await send(piece)
                await send("\n")
