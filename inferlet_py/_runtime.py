"""The run itself: on whose behalf, its timeline, the server's memory, and questions about it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from inferlet_py._host import get_host
from inferlet_py._tasks import wait_ticket

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["debug_query", "get_owner", "memory_pressure", "span", "suspend_pages"]


def get_owner() -> str:
    """Return on whose behalf the program runs."""
    return get_host().get_owner()


class span:  # noqa: N801 - authors use it as a function
    """Mark a part of the program in its timeline: ``with span("draft"): ...``.

    ``pie run --trace FILE`` shows it, with the commands that were sent meanwhile inside of it.

    Args:
        name: What is shown.
    """

    def __init__(self, name: str) -> None:
        # A lone surrogate has no UTF-8.
        self._name = name.encode(errors="replace").decode()
        self._numbers: list[int] = []  # it may be entered again

    def __enter__(self) -> None:
        self._numbers.append(get_host().begin_span(self._name))

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        get_host().end_span(self._numbers.pop())


async def memory_pressure() -> None:
    """Wait until KV pages are short: give back then what can be spared.

    Whoever gives nothing back in time may be suspended, or ended if it is among the newest.
    """
    host = get_host()
    ticket = host.memory_pressure()
    await wait_ticket(ticket)
    host.finish(ticket)


async def suspend_pages() -> None:
    """Let others have this program's KV pages: move their contents to host memory.

    The next command that needs them brings them back. For a program that is about to wait for
    long, as for its client.
    """
    host = get_host()
    ticket = host.suspend_pages()
    await wait_ticket(ticket)
    host.finish(ticket)


def debug_query(query: str) -> Any:
    """Return what the server knows of this run, for people who debug.

    Args:
        query: ``limits``, ``pages``, ``tickets`` or ``trace``. Questions about batches are
            answered by ``Queue.debug_query``.

    Raises:
        BadArgumentError: There is no such question.
    """
    return json.loads(get_host().debug_query(query))
