"""The ranks of a model as threads of this process, over gloo; as fast as tests want it."""

from __future__ import annotations

import queue
import threading
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import torch.distributed

from pie_trio.errors import EngineError
from pie_trio.inference.parallel.following import Follower, FollowingEngine
from pie_trio.inference.parallel.leading import Leader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pie_trio.engine_api import Batch
    from pie_trio.inference.engine import TorchEngine
    from pie_trio.inference.parallel.group import Group
    from pie_trio.inference.parallel.part import Part

DISTRIBUTED: Any = torch.distributed  # which does not declare all that it has
GLOO = DISTRIBUTED.ProcessGroupGloo
TIMEOUT = timedelta(seconds=60)


def connect_thread(group: Group, store: Any) -> None:
    """Connect a rank that is a thread."""
    options = GLOO._Options()
    options._timeout = TIMEOUT
    options._devices = [GLOO.create_device(hostname="127.0.0.1")]
    group.open(GLOO(store, group.split.rank, group.split.size, options))


class ThreadFollowers:
    """See :class:`~pie_trio.inference.parallel.leading.Followers`.

    Attributes:
        engines: Of the ranks from 1 on, once they are open.
        num_steps: That were begun.
    """

    def __init__(self) -> None:
        self.engines: list[FollowingEngine] = []
        self.num_steps = 0
        self._queues: list[queue.SimpleQueue[Any]] = []
        self._answers: list[queue.SimpleQueue[Any]] = []  # in order, as of a socket
        self._threads: list[threading.Thread] = []

    def add(self, engine: FollowingEngine) -> None:
        """Let a rank follow."""
        calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        thread = threading.Thread(target=follow, args=(calls,), daemon=True)
        thread.start()
        self.engines.append(engine)
        self._queues.append(calls)
        self._answers.append(queue.SimpleQueue())
        self._threads.append(thread)

    def begin_step(self, batch: Batch) -> None:
        self.num_steps += 1
        self._tell([partial(engine.follow, batch) for engine in self.engines])

    def begin_read(
        self, page_ids: NDArray[np.int32]
    ) -> Callable[[], list[NDArray[np.uint8]]]:
        pairs = zip(self.engines, self._answers, strict=True)
        self._tell([partial(answer_pages, *pair, page_ids) for pair in pairs])
        return lambda: [answers.get(timeout=60) for answers in self._answers]

    def write_pages(
        self, page_ids: NDArray[np.int32], parts: Sequence[NDArray[np.uint8]]
    ) -> None:
        pairs = zip(self.engines, parts, strict=True)
        self._tell([partial(e.write_pages, page_ids, part) for e, part in pairs])

    def load_adapter(self, name: str, directory: str) -> None:
        for engine in self.engines:
            engine.load_adapter(name, directory)

    def drop_adapter(self, name: str) -> None:
        for engine in self.engines:
            engine.drop_adapter(name)

    def give_up(self, reason: str) -> NoReturn:
        raise EngineError(reason)

    def close(self) -> None:
        self._tell([None] * len(self.engines))
        for thread in self._threads:
            thread.join()

    def _tell(self, calls: Sequence[Callable[[], object] | None]) -> None:
        for own, call in zip(self._queues, calls, strict=True):
            own.put(call)


def answer_pages(
    engine: FollowingEngine,
    answers: queue.SimpleQueue[Any],
    page_ids: NDArray[np.int32],
) -> None:
    """Read pages of one rank."""
    answers.put(engine.read_pages(page_ids))


def follow(calls: queue.SimpleQueue[Any]) -> None:
    """Do what is asked until there is nothing more."""
    while (call := calls.get()) is not None:
        call()


def open_ranks(open_part: Callable[[Part], TorchEngine], size: int) -> TorchEngine:
    """Open an engine whose ranks are threads, and return rank 0's.

    Args:
        open_part: Opens that of one rank.
        size: How many there are.
    """
    followers, store = ThreadFollowers(), DISTRIBUTED.HashStore()
    leader = Leader(size, followers)
    engine = open_part(leader)
    parts = [Follower(rank, size) for rank in range(1, size)]
    for part in parts:
        found = open_part(part)
        assert isinstance(found, FollowingEngine)
        followers.add(found)
    groups = [leader.group, *(part.group for part in parts)]
    threads = [
        threading.Thread(target=connect_thread, args=(group, store)) for group in groups
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    own = engine.store_tokens

    def store_tokens(slots: NDArray[np.int32], token_ids: NDArray[np.int32]) -> None:
        for follower in followers.engines:
            follower.store_tokens(slots, token_ids)
        own(slots, token_ids)

    setattr(engine, "store_tokens", store_tokens)  # noqa: B010 -- a tool for tests
    return engine


def followers_of(engine: TorchEngine) -> ThreadFollowers:
    """Return the other ranks of an engine."""
    followers: object = vars(engine)["_followers"]
    assert isinstance(followers, ThreadFollowers)
    return followers
