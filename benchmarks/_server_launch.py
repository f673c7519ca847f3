"""A launch over HTTP beside one in this process, as ``pie run`` makes it once its engine is there.

Both run the same program, whose first call to the host logs a line, in the same run and in turns;
neither steps a model. What counts is when that line is here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import trio

from benchmarks.harness import make_program, open_bare_launcher

if TYPE_CHECKING:
    from collections.abc import Generator

    from pie_trio.application.host.instance_log import LogLine
    from pie_trio.application.lifecycle.instances import Launcher

__all__ = ["measure_launches"]

TEXT = (
    "from inferlet_py import inferlet, log\n"
    "@inferlet\n"
    "async def main() -> None:\n"
    "    log('running')\n"
)
PROGRAM = make_program(TEXT)
NUM_FIRST = 10
"""Launches that do not count: they compile, and make connections and guests."""
PAUSE_SECONDS = 0.05
"""Between launches, for guests to be made ahead of time."""


async def measure_launches(
    count: int, num_warm: int
) -> tuple[list[float], list[float]]:
    """Return milliseconds from a launch to the program's first line: here, and over HTTP.

    Args:
        count: Launches of each.
        num_warm: Guests that both make ahead of time.
    """
    here, there = list[float](), list[float]()
    with _serving(num_warm) as port:
        async with open_bare_launcher(num_warm=num_warm) as launcher:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await _ask(stream, "PUT", "/v1/programs/first", TEXT.encode(), b"}")
            await launcher.compile(PROGRAM)
            for number in range(-NUM_FIRST, count):
                milliseconds = await _launch_here(launcher), await _launch_there(stream)
                if number >= 0:
                    here.append(milliseconds[0])
                    there.append(milliseconds[1])
            await stream.aclose()
    return here, there


async def _launch_here(launcher: Launcher) -> float:
    reached = list[float]()

    def on_log(_line: LogLine) -> None:
        reached.append(time.perf_counter())

    started = time.perf_counter()
    await launcher.prepare(PROGRAM, {}, on_log=on_log).run()
    await trio.sleep(PAUSE_SECONDS)
    return (reached[0] - started) * 1e3


async def _launch_there(stream: trio.SocketStream) -> float:
    body = json.dumps({"program": "first"}).encode()
    started = time.perf_counter()
    data = await _ask(stream, "POST", "/v1/instances", body, b'"running"')
    reached = time.perf_counter()
    while not data.endswith(b"0\r\n\r\n"):
        data += await stream.receive_some()
    await trio.sleep(PAUSE_SECONDS)
    return (reached - started) * 1e3


async def _ask(
    stream: trio.SocketStream, method: str, path: str, body: bytes, mark: bytes
) -> bytes:
    """Send a request, and return its answer up to a mark or further."""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    await stream.send_all(head.encode() + body)
    data = b""
    while mark not in data:
        more = await stream.receive_some()
        if not more:
            raise RuntimeError(f"the server closed after {data[:200]!r}")
        data += more
    if not data.startswith((b"HTTP/1.1 200", b"HTTP/1.1 201")):
        raise RuntimeError(f"the server refuses: {data[:500]!r}")
    return data


@contextmanager
def _serving(num_warm: int) -> Generator[int]:
    """Run ``pie serve`` with pie-tiny, and offer its port."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pie_trio", "serve", "--port", "0"]
        command += ["--data-dir", folder, "--warm", str(num_warm)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None, "it is a pipe"
                port = urlsplit(process.stdout.readline().strip()).port
                if port is None:
                    raise RuntimeError("pie serve did not start: see above")
                yield port
            finally:
                process.terminate()
