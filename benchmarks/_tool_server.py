"""A tool that answers over HTTP after a delay: ``python -m benchmarks._tool_server DELAY_SECONDS``.

It prints its port. Connections are kept, and waiting costs nothing, so that the tool takes as
little as possible of the processors that the servers share with it.
"""

from __future__ import annotations

import asyncio
import sys
from functools import partial

BACKLOG = 1024


async def answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, delay: float
) -> None:
    """Answer the requests of a connection, which have no bodies."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ", 2)[1]
            await asyncio.sleep(delay)
            body = b"the result of " + path
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main(delay: float) -> None:
    server = await asyncio.start_server(
        partial(answer, delay=delay), "127.0.0.1", 0, backlog=BACKLOG
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1])))
