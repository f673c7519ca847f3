"""Engines for processes of their own, and the way to stop one in the middle of a step."""

from __future__ import annotations

import os
import signal
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pie_trio.application.engines.process import engine_environment
from pie_trio.application.engines.remote import RemoteEngine
from pie_trio.errors import ConfigError
from pie_trio.inference.fake import FakeEngine

if TYPE_CHECKING:
    from pie_trio.config import EngineProcessConfig
    from pie_trio.engine_api import Batch
    from pie_trio.inference.parallel.part import Part

NUM_PAGES, PAGE_SIZE = 16, 4
POISON = 66
"""A step with this token kills its process."""


class Brake:
    """Holds the steps of an engine in another process, each time that it is set."""

    def __init__(self, folder: Path) -> None:
        self.flag, self.pipe = folder / "hold", folder / "held"
        os.mkfifo(self.pipe)

    def set(self) -> None:
        """Let the next step begin and never end."""
        self.flag.touch()

    def wait_held(self) -> None:
        """Wait until a step has begun, and hold no later ones. Blocks."""
        self.pipe.read_bytes()
        self.flag.unlink()


def open_fake(folder: str) -> FakeEngine:
    """Return a fake whose steps a brake can hold, in the process that asks for it."""
    brake = Path(folder)

    def on_step(batch: Batch) -> None:
        if any(POISON in forward.token_ids for forward in batch.forwards):
            os.kill(os.getpid(), signal.SIGKILL)
        if (brake / "hold").exists():
            (brake / "held").write_bytes(b"")
            threading.Event().wait()

    return FakeEngine(num_pages=NUM_PAGES, page_size=PAGE_SIZE, on_step=on_step)


def refuse(reason: str) -> FakeEngine:
    """Open nothing."""
    raise ConfigError(reason)


def open_rank_0_alone(part: Part) -> FakeEngine:
    """Open a part of a model, but on the other ranks."""
    if part.group.split.rank:
        raise ConfigError(f"rank {part.group.split.rank} has no such file")
    return FakeEngine()


def hold_other_ranks(folder: str, part: Part) -> FakeEngine:
    """As :func:`open_never`, but on rank 0."""
    return open_never(folder) if part.group.split.rank else FakeEngine()


def open_once(folder: str) -> FakeEngine:
    """Open an engine the first time, and kill the process after that."""
    flag = Path(folder) / "opened"
    if flag.exists():
        os.kill(os.getpid(), signal.SIGKILL)
    flag.touch()
    return open_fake(folder)


def open_never(folder: str) -> FakeEngine:
    """Tell the number of the process to who reads the brake's pipe, and never open."""
    (Path(folder) / "held").write_text(str(os.getpid()))
    threading.Event().wait()
    raise AssertionError("it waits for ever")


def start_fake(
    folder: Path, *, config: EngineProcessConfig | None = None
) -> RemoteEngine:
    """Start a fake in a process of its own."""
    opener = partial(open_fake, str(folder))
    return RemoteEngine("fake", opener, engine_environment(1), config=config)
