"""The standard library's ``logging``, on its way to the instance's log."""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING

from inferlet_py._host import get_host

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["forward_logging"]

_LEVELS = (
    (logging.ERROR, "error"),
    (logging.WARNING, "warning"),
    (logging.INFO, "info"),
)


class _HostHandler(logging.Handler):
    """Hands records to the host; those of other threads are the server's, in native mode."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread not in (None, self._thread):
            return
        try:
            text = self.format(record)
        except Exception:  # noqa: BLE001 - arguments that do not fit the message
            self.handleError(record)
            return
        level = next(
            (name for least, name in _LEVELS if record.levelno >= least), "debug"
        )
        # A lone surrogate has no UTF-8.
        get_host().log(level, text.encode(errors="replace").decode(), "")


@contextlib.contextmanager
def forward_logging() -> Generator[None]:
    """Let what is logged inside the block go to the instance's log, from ``INFO`` on.

    A program that wants more says ``logging.getLogger().setLevel(logging.DEBUG)``.
    """
    root, handler = logging.getLogger(), _HostHandler()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
