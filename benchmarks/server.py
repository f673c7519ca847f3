"""What a request, an event of a stream and a WebSocket's round trip cost the server.

    python -m benchmarks.server --servers pie pie-asgi uvicorn uvicorn-fast

Each server is a process of its own; they take turns within one run, so that all have the same
neighbours. CPU time is the server's alone (user and system), which says more than the rate where
the client shares the machine. The client is trio over raw sockets, and verifies what it gets.

At the end a launch over HTTP stands beside one of ``pie run``; the goal is 10 ms more at most.
"""

from __future__ import annotations

import select
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from benchmarks import _web_servers as web_servers
from benchmarks._server_launch import measure_launches
from benchmarks.harness import describe_machine, make_parser, spread

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable, Generator, Sequence

GET = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
MESSAGE = b'{"token": "hello", "index": 12345678}'
FRAME = bytes([0x81, 0x80 | len(MESSAGE), 0, 0, 0, 0]) + MESSAGE
ECHO = bytes([0x81, len(MESSAGE)]) + MESSAGE


@dataclass(frozen=True, slots=True)
class Server:
    """A process that serves.

    Attributes:
        name: Of the server.
        process_id: Its own.
        port: On loopback.
    """

    name: str
    process_id: int
    port: int

    def cpu_seconds(self) -> float:
        """Return what all its threads have used so far; the kernel counts nanoseconds."""
        tasks = Path(f"/proc/{self.process_id}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def memory_bytes(self) -> int:
        """Return its proportional set size."""
        path = Path(f"/proc/{self.process_id}/smaps_rollup")
        for line in path.read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("the kernel reports no Pss")

    async def connect(self) -> trio.SocketStream:
        """Return a connection to it."""
        return await trio.open_tcp_stream("127.0.0.1", self.port)


@contextmanager
def open_server(name: str) -> Generator[Server]:
    """Start a server's process, and end it."""
    command = [sys.executable, "-m", "benchmarks._web_servers", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None, "it is a pipe"
            ready, _, _ = select.select([process.stdout], [], [], 30)
            if not ready:
                raise RuntimeError(f"{name} did not say its port within 30 seconds")
            yield Server(name, process.pid, int(process.stdout.readline()))
        finally:
            process.kill()


async def read_until(stream: trio.SocketStream, mark: bytes) -> bytes:
    """Return what comes, up to a mark and a line end."""
    data = b""
    while not data.rstrip().endswith(mark):
        more = await stream.receive_some()
        if not more:
            raise RuntimeError(f"the server closed after {data[:200]!r}")
        data += more
    return data


async def request(stream: trio.SocketStream, num_requests: int) -> None:
    """Make requests, one after the other."""
    for _ in range(num_requests):
        await stream.send_all(GET % b"/json")
        answer = await read_until(stream, b"]}")
        assert answer.startswith(b"HTTP/1.1 200"), answer


async def read_stream(stream: trio.SocketStream, path: str, num_events: int) -> None:
    """Read a stream of events to its end."""
    await stream.send_all(GET % path.encode())
    num_seen, tail = 0, b""
    while not tail.endswith(b"0\r\n\r\n"):
        data = tail + await stream.receive_some(1 << 18)
        # What may be the beginning of a mark is looked at again.
        num_seen += data.count(b"data:", 0, len(data)) - tail.count(b"data:")
        tail = data[-64:]
    assert num_seen == num_events, (num_seen, num_events)


async def echo(stream: trio.SocketStream, num_messages: int) -> None:
    """Send messages, each when the last one came back."""
    for _ in range(num_messages):
        await stream.send_all(FRAME)
        received = b""
        while not received.endswith(ECHO):  # the first may follow a ping
            received += await stream.receive_some()


async def at_once(works: Sequence[Callable[[], Awaitable[object]]]) -> None:
    """Do all at the same time."""
    async with trio.open_nursery() as nursery:
        for work in works:
            nursery.start_soon(work)


@dataclass(frozen=True, slots=True)
class Result:
    """Of one measurement: operations a second, and the server's CPU an operation."""

    rate: float
    cpu_microseconds: float


async def measure(
    server: Server, num_operations: int, work: Callable[[], Awaitable[object]]
) -> Result:
    """Measure operations."""
    cpu, began = server.cpu_seconds(), time.perf_counter()
    await work()
    seconds = time.perf_counter() - began
    used = server.cpu_seconds() - cpu
    return Result(num_operations / seconds, used / num_operations * 1e6)


async def measure_requests(server: Server, num_clients: int, total: int) -> Result:
    """Measure requests over connections that stay open."""
    streams = [await server.connect() for _ in range(num_clients)]
    each = total // num_clients
    await at_once([partial(request, s, 5) for s in streams])
    works = [partial(request, s, each) for s in streams]
    result = await measure(server, each * num_clients, lambda: at_once(works))
    for stream in streams:
        await stream.aclose()
    return result


async def measure_events(server: Server, num_streams: int, total: int) -> Result:
    """Measure streams that send as fast as they can, an event a write."""
    streams = [await server.connect() for _ in range(num_streams)]
    each = total // num_streams
    path = f"/events?n={each}"
    works = [partial(read_stream, s, path, each) for s in streams]
    result = await measure(server, each * num_streams, lambda: at_once(works))
    for stream in streams:
        await stream.aclose()
    return result


async def measure_echoes(server: Server, num_clients: int, total: int) -> Result:
    """Measure round trips over WebSockets."""
    streams = [await server.connect() for _ in range(num_clients)]
    for stream in streams:
        await stream.send_all(HANDSHAKE)
        data = b""
        while b"\r\n\r\n" not in data:
            data += await stream.receive_some()
        assert b" 101 " in data, data
    each = total // num_clients
    works = [partial(echo, s, each) for s in streams]
    result = await measure(server, each * num_clients, lambda: at_once(works))
    for stream in streams:
        await stream.aclose()
    return result


async def measure_idle(server: Server, num_connections: int) -> float:
    """Return KiB a connection that has made one request."""
    before = server.memory_bytes()
    streams = [await server.connect() for _ in range(num_connections)]
    for stream in streams:
        await request(stream, 1)
    after = server.memory_bytes()
    for stream in streams:
        await stream.aclose()
    return (after - before) / num_connections / 1024


async def run(options: argparse.Namespace) -> None:
    """Measure all servers, in turns, and print medians and quartiles."""
    rates = defaultdict[tuple[str, str], list[float]](list)
    costs = defaultdict[tuple[str, str], list[float]](list)
    idle = defaultdict[str, list[float]](list)
    scale: float = options.scale
    rows: dict[str, Callable[[Server], Awaitable[Result]]] = {
        "requests, 32 clients": lambda s: measure_requests(s, 32, int(3200 * scale)),
        "events, 1 stream": lambda s: measure_events(s, 1, int(20000 * scale)),
        "events, 64 streams": lambda s: measure_events(s, 64, int(19200 * scale)),
        "events, 512 streams": lambda s: measure_events(s, 512, int(30720 * scale)),
        "round trips, 64 WebSockets": lambda s: measure_echoes(
            s, 64, int(6400 * scale)
        ),
    }
    for _ in range(options.rounds):
        for name in options.servers:
            with open_server(name) as server:
                for row, work in rows.items():
                    result = await work(server)
                    rates[row, name].append(result.rate)
                    costs[row, name].append(result.cpu_microseconds)
            with open_server(name) as server:
                idle[name].append(await measure_idle(server, 500))
    for row in rows:
        print(f"\n{row}")
        for name in options.servers:
            cost, rate = costs[row, name], statistics.median(rates[row, name])
            print(f"  {name:14} {rate:9.0f} /s   CPU {spread(cost)} us each")
    print("\nan idle connection")
    for name in options.servers:
        print(f"  {name:14} {spread(idle[name])} KiB")
    for num_warm in options.warm if options.launches else ():
        here, there = await measure_launches(options.launches, num_warm)
        more = statistics.median(there) - statistics.median(here)
        print(
            f"\na launch, to the program's first line, {num_warm} guests made ahead: ms"
        )
        print(f"  {'pie run':14} {spread(here)}\n  {'over HTTP':14} {spread(there)}")
        print(f"  {'more':14} {more:.2f}")


def main() -> None:
    """Parse the options and run."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of all counts")
    parser.add_argument("--launches", type=int, default=100, help="0 for none")
    parser.add_argument("--warm", type=int, nargs="*", default=[0, 4])
    parser.add_argument("--servers", nargs="*", default=list(web_servers.SERVERS))
    options = parser.parse_args()
    print(describe_machine())
    for name in list(options.servers):
        if reason := web_servers.why_not(name):
            print(f"left out: {name}: {reason}")
            options.servers.remove(name)
    trio.run(run, options)


if __name__ == "__main__":
    main()
