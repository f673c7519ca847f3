"""Runs the command line, in this process where that is enough and in one of its own else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.fork_server import ForkServer

ROOT = Path(__file__).parent.parent.parent
LIMIT_SECONDS = 200


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


Pie = Callable[..., Done]


@pytest.fixture(scope="session")
def random_model(
    torch_is_there: None, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A small model with random weights."""
    from tests.model_factory import write_llama_directory

    return write_llama_directory(tmp_path_factory.mktemp("model") / "random")


@pytest.fixture(scope="session")
def fork_server() -> Generator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def pie(fork_server: ForkServer) -> Pie:
    """Runs ``pie`` with arguments in a process of its own.

    Its stdin is a pipe with some bytes, a file descriptor, or else nothing.
    """

    def run(
        *arguments: object, stdin: bytes | int | None = None, **environment: str
    ) -> Done:
        words = [*map(str, arguments)]
        env = {**os.environ, "PIE_MODEL": "", **environment}
        if any(name.startswith("PYTHON") for name in environment):
            return run_from_the_start(words, env)
        with opened(stdin) as source:
            code, out, err = fork_server.run(
                words, env, stdin=source, timeout=LIMIT_SECONDS
            )
        return Done(code, out.decode(), err.decode())

    return run


@contextmanager
def opened(stdin: bytes | int | None) -> Generator[int]:
    """Return a file descriptor to read from, open within the block."""
    if isinstance(stdin, int):
        yield stdin
        return
    if stdin is None:
        source = os.open(os.devnull, os.O_RDONLY)
    else:
        source, end = os.pipe()
        os.write(end, stdin)  # so little that it does not have to be read at once
        os.close(end)
    try:
        yield source
    finally:
        os.close(source)


def run_from_the_start(arguments: list[str], environment: dict[str, str]) -> Done:
    """Run ``pie`` in a new interpreter."""
    done = subprocess.run(
        [sys.executable, "-m", "pie_trio", *arguments],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def mode_flags(mode: str) -> list[str]:
    """Flags of ``pie run`` for the mode of the matrix."""
    return ["--native"] if mode == "native" else []
