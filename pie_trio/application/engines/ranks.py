"""The ranks of a model as processes: rank 0 is the engine's own, and has started the others.

For the server there is one process, as of any engine: rank 0 gets the batches and passes them on.
It ends when another rank does, and all others end with it.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, NoReturn, TypeVar

from pie_trio.application.engines.channel import Channel, ClosedError
from pie_trio.application.engines.follower import CONNECT_SECONDS
from pie_trio.application.engines.messages import BatchWriter, unpack_error
from pie_trio.application.engines.process import END_SECONDS, RANK_LOST
from pie_trio.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pie_trio.engine_api import Batch, Engine
    from pie_trio.inference.parallel.part import Part

__all__ = ["RankProcesses", "open_ranks"]

E = TypeVar("E", bound="Engine")

logger = logging.getLogger(__name__)

MODULE = "pie_trio.application.engines.follower"


def open_ranks(
    open_part: Callable[[Part], E],
    size: int,
    *,
    device: str = "cpu",
    gpus: Sequence[str] = (),
) -> E:
    """Open the engine of a model that several ranks share, this process being rank 0. Blocks.

    From then on this process ends when another rank does.

    Args:
        open_part: Opens the engine of one rank, in its process: it can be pickled.
        size: Ranks; two or more.
        device: Of tensors, in each process, with its number.
        gpus: One for each rank, as ``CUDA_VISIBLE_DEVICES`` names them.

    Raises:
        ConfigError: A rank cannot open its part.
        EngineError: A rank has ended.
    """
    if sys.platform != "linux":
        raise ConfigError(
            f"--tensor-parallel {size} needs Linux, and this is {sys.platform}: leave it out"
        )
    # The other processes import torch while this one does.
    ranks = RankProcesses(size, gpus)
    try:
        ranks.send_opening(open_part, device)
        if gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus[0]
        import torch

        from pie_trio.inference.parallel.group import connect
        from pie_trio.inference.parallel.leading import Leader

        leader = Leader(size, ranks)
        engine = open_part(leader)
        ranks.wait_opened()
        ranks.watch()
        store = ranks.store.fileno()
        connect(leader.group, store, torch.device(device), CONNECT_SECONDS)
    except BaseException:
        ranks.close()
        raise
    return engine


@dataclass(frozen=True, slots=True, eq=False)
class _Rank:
    """One process.

    Attributes:
        number: From 1.
        popen: The process.
        life: Can be read once it has ended; nothing is ever sent.
        steps: For what it does one after the other.
        calls: For what it does beside that in no time.
        loads: For what takes long, as it does in the process of any engine.
    """

    number: int
    popen: subprocess.Popen[bytes]
    life: socket.socket
    steps: Channel
    calls: Channel
    loads: Channel

    def end_reason(self) -> str:
        """Say how it has ended."""
        try:
            code = self.popen.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return f"rank {self.number} has closed its sockets"
        if code >= 0:
            return f"rank {self.number} ended with exit code {code}"
        return f"rank {self.number} ended by {signal.Signals(-code).name}"


class RankProcesses:
    """The ranks from 1 on; see :class:`~pie_trio.inference.parallel.leading.Followers`.

    Steps and pages are one thread's; adapters come and go in others.

    Attributes:
        store: The file over which the ranks find each other; it has no name.
    """

    def __init__(self, size: int, gpus: Sequence[str]) -> None:
        """Start the processes.

        Args:
            size: Ranks, with rank 0.
            gpus: See :func:`open_ranks`.
        """
        self.store: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by close
        self._writer = BatchWriter()
        self._calling, self._loading = threading.Lock(), threading.Lock()
        self._is_closed = False
        self._ranks: list[_Rank] = []
        try:
            for number in range(1, size):
                own = {"CUDA_VISIBLE_DEVICES": gpus[number]} if gpus else {}
                environment = {**os.environ, **own}
                self._ranks.append(self._spawn(number, size, environment))
        except BaseException:
            self.close()
            raise

    def _spawn(self, number: int, size: int, environment: Mapping[str, str]) -> _Rank:
        pairs = [socket.socketpair() for _ in range(4)]
        # The system kills it when the thread ends that has started it, so it must be the main one.
        is_main = threading.current_thread() is threading.main_thread()
        files = [*(theirs.fileno() for _, theirs in pairs), self.store.fileno()]
        numbers = (os.getpid() if is_main else 0, *files, number, size)
        try:
            popen = subprocess.Popen(
                [sys.executable, "-P", "-m", MODULE, *map(str, numbers)],
                stdin=subprocess.DEVNULL,
                env=dict(environment),
                pass_fds=files,
            )
        except BaseException:
            for ours, _ in pairs:
                ours.close()
            raise
        finally:
            for _, theirs in pairs:
                theirs.close()
        life, *others = [ours for ours, _ in pairs]
        return _Rank(number, popen, life, *map(Channel, others))

    def send_opening(self, open_part: Callable[[Part], Engine], device: str) -> None:
        """Let each of them open its part."""
        self._send_all((open_part, device))

    def wait_opened(self) -> None:
        """Wait until all parts are open.

        Raises:
            ConfigError: One cannot be opened.
            EngineError: A process has ended.
        """
        for rank in self._ranks:
            try:
                is_good, value = rank.steps.receive()
            except ClosedError:
                raise EngineError(f"{rank.end_reason()} while it was opened") from None
            if not is_good:
                raise unpack_error(value)

    def watch(self) -> None:
        """End this process when one of theirs ends."""
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        poll = select.poll()
        for rank in self._ranks:
            poll.register(rank.life, select.POLLIN)
        poll.poll()
        if not self._is_closed:
            self.give_up("a rank has ended")

    # ---- what they are told -----------------------------------------------------------

    def begin_step(self, batch: Batch) -> None:
        """See :meth:`Followers.begin_step`."""
        self._send_all(("follow", self._writer.write(batch)))

    def begin_read(
        self, page_ids: NDArray[np.int32]
    ) -> Callable[[], list[NDArray[np.uint8]]]:
        """See :meth:`Followers.begin_read`."""
        self._send_all(("read_pages", (page_ids,)))
        return self._receive_pages

    def _receive_pages(self) -> list[NDArray[np.uint8]]:
        try:
            return [rank.steps.receive() for rank in self._ranks]
        except ClosedError:
            self.give_up("a rank has ended")

    def write_pages(
        self, page_ids: NDArray[np.int32], parts: Sequence[NDArray[np.uint8]]
    ) -> None:
        """See :meth:`Followers.write_pages`."""
        for rank, part in zip(self._ranks, parts, strict=True):
            self._send(rank.steps, ("write_pages", (page_ids, part)))

    def load_adapter(self, name: str, directory: str) -> None:
        """See :meth:`Followers.load_adapter`."""
        with self._loading:
            channels = [rank.loads for rank in self._ranks]
            self._call(channels, "load_adapter", name, directory)

    def drop_adapter(self, name: str) -> None:
        """See :meth:`Followers.drop_adapter`."""
        with self._calling:
            channels = [rank.calls for rank in self._ranks]
            self._call(channels, "drop_adapter", name)

    def _call(self, channels: Sequence[Channel], name: str, *values: Any) -> None:
        """Let all of them do something beside their steps, and wait for it.

        Raises:
            PieError: What the first raised that could not do it.
        """
        for channel in channels:
            self._send(channel, (name, values))
        try:
            answers = [channel.receive() for channel in channels]
        except ClosedError:
            self.give_up("a rank has ended")
        for is_good, value in answers:
            if not is_good:
                raise unpack_error(value)

    def _send_all(self, message: Any) -> None:
        for rank in self._ranks:
            self._send(rank.steps, message)

    def _send(self, channel: Channel, message: Any) -> None:
        try:
            channel.send(message)
        except ClosedError:
            self.give_up("a rank has ended")

    # ---- their end --------------------------------------------------------------------

    def give_up(self, reason: str) -> NoReturn:
        """End this process, which ends the others. See :meth:`Followers.give_up`."""
        ended = [rank for rank in self._ranks if _has_ended(rank)]
        why = ", ".join(rank.end_reason() for rank in ended) or reason
        logger.error("all ranks of the model are ended: %s", why)
        os._exit(RANK_LOST)

    def close(self) -> None:
        """See :meth:`Followers.close`."""
        if self._is_closed:
            return
        self._is_closed = True
        for rank in self._ranks:
            rank.popen.kill()
        for rank in self._ranks:
            rank.popen.wait(END_SECONDS)
            rank.life.close()
            for channel in (rank.steps, rank.calls, rank.loads):
                channel.close()
        self.store.close()


def _has_ended(rank: _Rank) -> bool:
    poll = select.poll()
    poll.register(rank.life, select.POLLIN)
    return bool(poll.poll(0))
