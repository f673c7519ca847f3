"""Chat with a model, line by line: what ``pie chat`` runs."""

from inferlet_py import Chat, Sampler, inferlet, messages, send


@inferlet
async def main(
    system: str = "", temperature: float = 0.0, max_tokens: int = 512, marker: str = ""
) -> None:
    """Reply to each line that comes in; ``/reset`` forgets all of them.

    Args:
        system: What the system message says; without, there is none.
        temperature: 0 always takes the most likely token; higher is more varied.
        max_tokens: Most tokens of a reply.
        marker: What is sent when it is the client's turn.
    """
    sampler = Sampler(temperature=temperature)
    chat = Chat(system or None)
    await send(marker)
    async for line in messages():
        text = str(line).strip()
        if text == "/reset":
            chat.close()
            chat = Chat(system or None)
        elif text:
            async for piece in chat.user(text).reply(
                max_tokens=max_tokens, sampler=sampler
            ):
                await send(piece)
            await send("\n")
        await send(marker)
