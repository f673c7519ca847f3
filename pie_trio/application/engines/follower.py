"""The process of one rank but 0: it does what rank 0 tells it, in that order, and nothing else.

It is started by :mod:`pie_trio.application.engines.ranks`, and ends with rank 0. Whatever goes wrong in
it once it is open ends it, and by that all ranks: what one does not do, the others wait for.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

from pie_trio.application.engines.channel import Channel, ClosedError
from pie_trio.application.engines.life import live_with
from pie_trio.application.engines.messages import BatchReader, pack_error
from pie_trio.errors import PieError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pie_trio.inference.parallel.following import FollowingEngine

__all__ = ["CONNECT_SECONDS", "main"]

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 600.0
"""For other ranks to load their parts. The server has limits of its own, which are shorter."""


def main(arguments: Sequence[str]) -> None:
    """Follow until rank 0 ends.

    Args:
        arguments: The process of rank 0; the numbers of the sockets, for its life, for steps, and
            for calls beside them; that of the file for :func:`connect`; rank, and how many.
    """
    parent, life, *sockets, store, rank, size = map(int, arguments)
    live_with(parent, life)
    steps, *others = [Channel(socket.socket(fileno=number)) for number in sockets]
    try:
        engine = _open(steps, store, rank, size)
        for calls in others:
            asked = (engine, calls)
            threading.Thread(target=_answer_calls, args=asked, daemon=True).start()
        _follow(engine, steps)
    except ClosedError:
        os._exit(0)  # other threads may be anywhere
    except BaseException:
        logger.exception("rank %d of %d failed", rank, size)
        os._exit(1)


def _open(steps: Channel, store: int, rank: int, size: int) -> FollowingEngine:
    open_part, device = steps.receive()
    try:
        import torch

        from pie_trio.inference.parallel.following import Follower
        from pie_trio.inference.parallel.group import connect

        part = Follower(rank, size)
        engine: FollowingEngine = open_part(part)
    except PieError as error:
        steps.send((False, pack_error(error)))
        raise ClosedError from error
    steps.send((True, None))
    connect(part.group, store, torch.device(device), CONNECT_SECONDS)
    return engine


def _follow(engine: FollowingEngine, steps: Channel) -> None:
    reader = BatchReader()
    while True:
        name, values = steps.receive()
        if name == "follow":
            engine.follow(reader.read(values))
        elif name == "read_pages":
            steps.send(engine.read_pages(*values))
        else:
            getattr(engine, name)(*values)


def _answer_calls(engine: FollowingEngine, calls: Channel) -> None:
    while True:
        try:
            name, values = calls.receive()
            calls.send(_outcome(engine, name, values))
        except ClosedError:
            os._exit(0)


def _outcome(engine: FollowingEngine, name: str, values: Any) -> tuple[bool, Any]:
    try:
        return True, getattr(engine, name)(*values)
    except Exception as error:
        if not isinstance(error, PieError):
            logger.exception("a call of a rank failed")
        return False, pack_error(error)


if __name__ == "__main__":
    main(sys.argv[1:])
