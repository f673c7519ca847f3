"""Forks a process for each command line, so that torch is imported once for all of them.

What is run is the command as it is, in a process of its own with its own environment, folder and
outputs; only the imports have happened already.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import socket
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ForkServer", "preload"]

ROOT = Path(__file__).parent.parent.parent
HEADER = struct.Struct("!I")
CODE = struct.Struct("!i")

PRELOADED = [
    "pie_trio.application.doctor",
    "pie_trio.application.lifecycle.instances",
    "pie_trio.application.run.command",
    "pie_trio.application.run.native",
    "pie_trio.application.run.setup",
    "pie_trio.cli",
    "pie_trio.inference.engine",  # imports torch, where there is one
]


class ForkServer:
    """The side of the tests."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.cli.fork_server", str(theirs.fileno())],
                cwd=ROOT,
                env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def run(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        stdin: int,
        timeout: float,
    ) -> tuple[int, bytes, bytes]:
        """Run ``pie`` with these arguments; return its exit code and what it printed.

        It reads from the file descriptor ``stdin``, which remains the caller's.
        """
        request = json.dumps([list(arguments), dict(environment)]).encode()
        self._socket.settimeout(timeout)
        with ThreadPoolExecutor(2) as readers:
            pipes = [os.pipe() for _ in range(2)]
            printed = [readers.submit(_read_all, source) for source, _ in pipes]
            try:
                header = HEADER.pack(len(request))
                ends = [stdin, *(end for _, end in pipes)]
                socket.send_fds(self._socket, [header], ends)
            finally:
                for _, end in pipes:
                    os.close(end)
            self._socket.sendall(request)
            (code,) = CODE.unpack(_receive(self._socket, CODE.size))
            out, err = (reader.result(timeout) for reader in printed)
        return code, out, err

    def close(self) -> None:
        """End it."""
        self._socket.close()
        self._process.wait(timeout=60)


def preload() -> None:
    """Import what ``pie`` imports when it runs something."""
    for name in PRELOADED:
        with suppress(ModuleNotFoundError):  # there may be no torch
            importlib.import_module(name)
    # An interpreter that ends would look at each of torch's objects, and copy its page: half a
    # second, twice what most commands take.
    gc.collect()
    gc.freeze()


def _read_all(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


def _receive(source: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = source.recv(count - len(data))
        if not part:
            raise EOFError("the other side has ended")
        data += part
    return data


def _serve(source: socket.socket) -> None:
    """Fork for each request; returns in the children, ready to run."""
    while True:
        header, fds, _, _ = socket.recv_fds(source, HEADER.size, 3)
        if not header:
            os._exit(0)
        arguments, environment = json.loads(
            _receive(source, HEADER.unpack(header)[0]).decode()
        )
        if pid := os.fork():
            for fd in fds:
                os.close(fd)
            _, status = os.waitpid(pid, 0)
            source.sendall(CODE.pack(os.waitstatus_to_exitcode(status)))
            continue
        source.close()
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
            os.close(fd)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["pie", *arguments]
        return


if __name__ == "__main__":
    preload()
    _serve(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module("pie_trio", run_name="__main__")
