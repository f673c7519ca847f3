"""Start the process of an engine, in an environment that is set before torch is imported."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pie_trio
from pie_trio.application.engines.channel import Channel, ClosedError
from pie_trio.application.engines.messages import unpack_error
from pie_trio.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pie_trio.engine_api import Engine, ModelInfo

__all__ = [
    "END_SECONDS",
    "RANK_LOST",
    "EngineOpener",
    "EngineProcess",
    "engine_environment",
    "num_cores",
    "spawn_engine",
]

NUM_SLOW = 3
"""Calls that may take long (grammars, adapters) which are answered at once."""

RANK_LOST = 3
"""Exit code of an engine's process that ends because another rank of its model has."""

END_SECONDS = 5.0
"""For a killed process to be gone."""

EngineOpener = "Callable[[], Engine]"
"""Opens the engine, in its process: it can be pickled."""

THREADS = {
    # Threads that spin while they wait cost whoever shares the cores up to 8 ms a parallel
    # region: the server does. Those that sleep at once take longer to wake than most regions of
    # a step last. So they spin for some 0.3 ms first: a fifth more tokens a second for 1 stream
    # of a model of 60M, 6 to 9 % less for 32 (`benchmarks.token_cost`). 0 undoes it.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "30000",
    "KMP_BLOCKTIME": "0",
}


def engine_environment(num_threads: int | None) -> dict[str, str]:
    """Return the environment of an engine's process: what the operator has set goes first.

    Args:
        num_threads: Of a step on the CPU; None for one a core that the process may use.
    """
    root = str(Path(pie_trio.__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    count = num_threads or num_cores()
    threads = {**THREADS, "OMP_NUM_THREADS": str(count)}
    return {**threads, **os.environ, "PYTHONPATH": path}


@dataclass(frozen=True, slots=True, eq=False)
class EngineProcess:
    """One process of an engine, from its start to its end.

    Attributes:
        popen: The process.
        life: Can be read once the process has ended; nothing is ever sent.
        steps: For steps and pages, one at a time.
        calls: For short calls.
        slow: For calls that may take long, one at a time on each.
    """

    popen: subprocess.Popen[bytes]
    life: socket.socket
    steps: Channel
    calls: Channel
    slow: tuple[Channel, ...]

    def send_opening(
        self, opener: Callable[[], Engine], adapters: Sequence[tuple[str, str]]
    ) -> None:
        """Let the process open its engine; the answer comes on :attr:`steps`.

        Raises:
            ClosedError: It has ended.
        """
        self.steps.send((opener, adapters))

    def wait_opened(self, seconds: float) -> tuple[ModelInfo, dict[str, Any]]:
        """Return the info, and the errors of adapters that cannot be loaded. Blocks.

        Raises:
            ConfigError: The engine cannot be opened.
            EngineError: The process has ended, or takes too long.
        """
        try:
            answer = self.steps.receive(deadline=time.monotonic() + seconds)
        except ClosedError:
            raise EngineError(f"the engine's process {self.end_reason()}") from None
        except TimeoutError:
            raise EngineError(
                f"the engine was not open after {seconds:g} s: is the machine busy?"
            ) from None
        return read_opened(answer)

    def kill(self) -> None:
        """End it at once; its sockets stay open for those who wait for them. Idempotent."""
        self.popen.kill()

    def close(self) -> None:
        """End it and close its sockets, which nobody uses any more. Idempotent."""
        self.popen.kill()
        self.popen.wait(END_SECONDS)
        self.life.close()
        for channel in (self.steps, self.calls, *self.slow):
            channel.close()

    def end_reason(self) -> str:
        """Say how it has ended, as the end of a sentence."""
        try:
            code = self.popen.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return "has closed its sockets"
        if code == RANK_LOST:
            return "ended with another rank of its model: the log says why"
        if code >= 0:
            return f"ended with exit code {code}"
        name = signal.Signals(-code).name
        if -code == signal.SIGKILL:
            return f"was killed ({name}): was there too little memory?"
        return f"ended by {name}"


def read_opened(answer: tuple[bool, Any]) -> tuple[ModelInfo, dict[str, Any]]:
    """Return what :meth:`EngineProcess.wait_opened` returns.

    Raises:
        PieError: The engine cannot be opened.
    """
    is_good, value = answer
    if not is_good:
        raise unpack_error(value)
    info, failures = value
    return info, failures


def spawn_engine(environment: Mapping[str, str]) -> EngineProcess:
    """Start a process that waits for :meth:`EngineProcess.send_opening`.

    Never a fork: this process has threads, and they may hold locks.
    """
    pairs = [socket.socketpair() for _ in range(3 + NUM_SLOW)]
    # The system kills it when the thread ends that has started it, so it must be the main one.
    is_main = threading.current_thread() is threading.main_thread()
    numbers = [theirs.fileno() for _, theirs in pairs]
    module = "pie_trio.application.engines.worker"
    try:
        popen = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", module),
                *map(str, (os.getpid() if is_main else 0, *numbers)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno() if _has_number(sys.stderr) else None,
            env=dict(environment),
            pass_fds=numbers,
            process_group=0,  # Ctrl-C is for the server, which then ends it
        )
    except BaseException:
        for ours, _ in pairs:
            ours.close()
        raise
    finally:
        for _, theirs in pairs:
            theirs.close()
    life, steps, calls, *slow = [ours for ours, _ in pairs]
    life.setblocking(False)
    return EngineProcess(
        popen, life, Channel(steps), Channel(calls), tuple(map(Channel, slow))
    )


def _has_number(stream: Any) -> bool:
    try:
        stream.fileno()
    except (AttributeError, OSError):  # a test's, or none
        return False
    return True


def num_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
