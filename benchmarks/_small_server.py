"""A server with pie-tiny that gets more and more programs, or connections."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import trio

from benchmarks._growing import COST, MEMORY, GaveError
from benchmarks.peers import HttpPeer, cpu_seconds, deploy, free_port, memory_bytes

if TYPE_CHECKING:
    from benchmarks.peers import Starter

__all__ = ["SmallServer"]

NUM_RUNS, NUM_TOKENS = 4, 128
PROGRAM = """
from inferlet_py import Context, inferlet

@inferlet
async def main(tokens: int) -> int:
    async with Context() as context:
        context.append(range(1, 17))
        generation = context.generate(max_tokens=tokens, stop_tokens=[], stepwise=True)
        return len(await generation.tokens())
"""


class SmallServer:
    """A server.

    Args:
        starter: Ends it.
        name: Of its log.
    """

    def __init__(self, starter: Starter, name: str) -> None:
        self._port = free_port()
        command = [sys.executable, "-m", "pie_trio", "serve", "--port", self._port]
        folder = starter.folder / name
        process = starter.start(name, [*command, "--data-dir", folder])
        trio.run(deploy, process, self._port, "decode", PROGRAM)
        self._process = HttpPeer("Pie", process, self._port, "", is_pie=True)
        self._num_deployed = 0
        self._idle_bytes = memory_bytes(self._process)

    async def programs(self, number: int) -> dict[str, float]:
        """Measure what it costs to have so many programs, each of another text."""
        from pie_trio.client import Client, RefusedError

        num_new = number - self._num_deployed
        async with Client(f"http://127.0.0.1:{self._port}") as pie:
            began = cpu_seconds(self._process)
            for index in range(self._num_deployed, number):
                text = f"{PROGRAM}\n# {index}\n".encode()
                try:
                    await pie.deploy(text, f"program-{index}")
                except RefusedError as error:
                    raise GaveError(str(error)) from error
        self._num_deployed = number
        seconds = cpu_seconds(self._process) - began
        return {COST: seconds * 1e6 / num_new, **self._memory(number)}

    async def connections(self, number: int) -> dict[str, float]:
        """Measure an inferlet beside so many connections that have asked for something once."""
        from pie_trio.client import Client

        async with AsyncExitStack() as stack:
            pie = await stack.enter_async_context(
                Client(f"http://127.0.0.1:{self._port}")
            )
            await pie.call("decode", tokens=NUM_TOKENS)
            for _ in range(number):
                stream = await trio.open_tcp_stream("127.0.0.1", self._port)
                await stack.enter_async_context(stream)
                await _ask(stream)
            began = cpu_seconds(self._process)
            for _ in range(NUM_RUNS):
                await pie.call("decode", tokens=NUM_TOKENS)
            seconds = cpu_seconds(self._process) - began
            found = self._memory(number)
        return {COST: seconds * 1e6 / (NUM_RUNS * NUM_TOKENS), **found}

    def _memory(self, number: int) -> dict[str, float]:
        size = memory_bytes(self._process)
        grown = (size - self._idle_bytes) / number
        return {MEMORY: size / 1e6, "each": grown / 1e6}


async def _ask(stream: trio.SocketStream) -> None:
    await stream.send_all(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = await stream.receive_some(1 << 16)
    status = answer.split(b"\r\n", 1)[0].decode(errors="replace")
    if " 200 " not in f"{status} ":
        body = answer.split(b"\r\n\r\n")[-1][:200].decode(errors="replace")
        raise GaveError(f"{status or 'the connection was closed'}: {body}")
