"""Tells when a client has left, also while nobody reads what it sent before.

A connection is not read while a handler is busy with what came before: reading on would need
memory without end. Its end would go unseen, so the system is asked for just that.
"""

from __future__ import annotations

import select
import sys
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Hangups"]


class Hangups:
    """The ends of all connections of one server, by ``EPOLLRDHUP``.

    On systems other than Linux it knows of none: there, the end of a connection is seen when
    all that came before was read.
    """

    def __init__(self) -> None:
        self._callbacks = dict[int, "Callable[[], None]"]()
        self._epoll: select.epoll | None
        self._epoll = select.epoll() if sys.platform == "linux" else None

    def watch(self, fileno: int, callback: Callable[[], None]) -> None:
        """Call back once, when the peer will send no more. Nothing may be raised."""
        self._callbacks[fileno] = callback
        if sys.platform == "linux" and self._epoll is not None:
            flags = select.EPOLLRDHUP | select.EPOLLONESHOT
            self._epoll.register(fileno, flags)

    def forget(self, fileno: int) -> None:
        """Stop watching; before the socket is closed, since its number is used again."""
        del self._callbacks[fileno]
        if self._epoll is not None:
            self._epoll.unregister(fileno)

    async def run(self) -> None:
        """Call back until cancelled."""
        if self._epoll is None:
            return
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for fileno, _ in self._epoll.poll(0):
                if callback := self._callbacks.get(fileno):
                    callback()

    def close(self) -> None:
        """Give the system's resources back, after all connections have ended."""
        if self._epoll is not None:
            self._epoll.close()
