"""A process that ends when the one that started it does, however that comes about."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import socket
import sys
import threading

__all__ = ["live_with"]

_PR_SET_PDEATHSIG = 1


def live_with(parent: int, life: int) -> None:
    """Let this process end with the one that has started it, and leave Ctrl-C to that one.

    Args:
        parent: Its process; 0 if its end is not to be heard of by a signal.
        life: Number of a socket whose other end it holds, and which nobody writes to.
    """
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with(parent)
    alive = socket.socket(fileno=life)
    threading.Thread(target=_end_when_closed, args=(alive,), daemon=True).start()


def _end_when_closed(alive: socket.socket) -> None:
    alive.recv(1)  # nothing is ever sent: this is its end
    os._exit(0)


def _end_with(parent: int) -> None:
    """Let the system kill this process when the other's ends, also while it computes in C."""
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended before
            os._exit(0)
