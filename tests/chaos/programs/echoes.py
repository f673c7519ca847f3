"""Says what it is told, until it is told to end."""

from __future__ import annotations

from inferlet_py import inferlet, receive, send


@inferlet
async def main(seed: int) -> int:
    del seed
    count = 0
    while (message := await receive()) not in ("end", None):
        assert message is not None, "compared above"
        await send(message)
        count += 1
    return count
