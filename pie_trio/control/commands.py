"""Commands, and in which order they may run.

A command waits for the commands before it whose effects it must see: the last unfinished writer
of each page that it reads or writes, and the unfinished readers of each page that it writes.
Commands that wait for nothing are *ready*; two ready commands never touch the same page in
conflict, so any of them may share a batch. This keeps the commands of a queue in order, and those
of several queues wherever they meet in a page, and lets everything else run side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pie_trio.control.pages import PagePool
    from pie_trio.engine_api import ForwardRequest, ForwardResult, PageCopy

__all__ = ["Command", "PageOrder", "choose_batch"]


@dataclass(eq=False, slots=True)
class Command:
    """A forward on its way through the control layer.

    Attributes:
        request: What the engine gets.
        copies: Page copies to make before it.
        reads: Physical pages that it reads.
        writes: Physical pages that it writes; some may also be in ``reads``.
        on_done: Gets the result, or the error. Called exactly once.
        submitted_at: On trio's clock.
        num_blockers: Unfinished commands that it waits for; 0 means ready.
        dependents: Commands that wait for it.
        is_queued: It is, or was, among the ready ones.
        failure: Why it cannot run, if that is so.
        is_withdrawn: Nobody wants it any more: it finishes without running. Its copies are
            still made where a handle stands for one of them.
    """

    request: ForwardRequest
    copies: tuple[PageCopy, ...]
    reads: frozenset[int]
    writes: frozenset[int]
    on_done: Callable[[ForwardResult | Exception], None]
    submitted_at: float
    sequence: int = 0
    num_blockers: int = 0
    dependents: list[Command] = field(default_factory=list["Command"])
    is_queued: bool = False
    is_started: bool = False
    is_withdrawn: bool = False
    failure: Exception | None = None
    is_finished: bool = False

    @property
    def num_tokens(self) -> int:
        """New tokens of the forward."""
        return len(self.request.token_ids)

    def sees_unfilled(self, pool: PagePool) -> bool:
        """Say whether it would attend to a slot that the engine has not written.

        That is so when the command that was to write the slot was withdrawn, or failed.
        """
        request = self.request
        start = request.kv_len - len(request.token_ids)
        if start == 0:
            return False
        filled = pool.filled[request.page_ids]
        for copy in self.copies:  # they come before it
            filled[request.page_ids == copy.target] = pool.filled[copy.source]
        earlier = filled.reshape(-1)[:start]
        if request.mask is not None:
            earlier = earlier | ~request.mask[:, :start].any(axis=0)
        return not earlier.all()

    def note_outcome(self, pool: PagePool, *, is_copied: bool, is_run: bool) -> None:
        """Note which slots are filled now.

        Args:
            pool: The pages.
            is_copied: Whether the batch with its copies succeeded.
            is_run: Whether its forward did, too.
        """
        for copy in self.copies:
            pool.filled[copy.target] = pool.filled[copy.source] & is_copied
        request = self.request
        slots = np.arange(request.kv_len - len(request.token_ids), request.kv_len)
        pages = request.page_ids[slots // pool.page_size]
        if is_run or not is_copied:  # after a failed batch they hold anything
            pool.filled[pages, slots % pool.page_size] = is_run


class PageOrder:
    """Knows which unfinished command last wrote, and which read, each physical page."""

    def __init__(self) -> None:
        self._writer: dict[int, Command] = {}
        self._readers: dict[int, list[Command]] = {}

    def __len__(self) -> int:
        return len(self._writer) + len(self._readers)

    def add(self, command: Command) -> None:
        """Let ``command`` come after the unfinished commands that it depends on."""
        blockers: dict[int, Command] = {}
        for page in command.reads | command.writes:
            if (writer := self._writer.get(page)) is not None:
                blockers[id(writer)] = writer
        for page in command.writes:
            for reader in self._readers.get(page, ()):
                blockers[id(reader)] = reader
        for blocker in blockers.values():
            blocker.dependents.append(command)
        command.num_blockers = len(blockers)
        for page in command.writes:
            self._writer[page] = command
            self._readers.pop(page, None)
        for page in command.reads - command.writes:
            self._readers.setdefault(page, []).append(command)

    def finish(self, command: Command) -> list[Command]:
        """Forget a command; return those that became ready by that."""
        command.is_finished = True
        for page in command.writes:
            if self._writer.get(page) is command:
                del self._writer[page]
        for page in command.reads - command.writes:
            readers = self._readers.get(page)
            if readers and command in readers:
                readers.remove(command)
                if not readers:
                    del self._readers[page]
        ready: list[Command] = []
        for dependent in command.dependents:
            dependent.num_blockers -= 1
            if dependent.num_blockers == 0 and not dependent.is_finished:
                ready.append(dependent)
        command.dependents = []
        return ready


def choose_batch(
    ready: Iterable[Command], *, max_batch: int, max_tokens: int
) -> Sequence[Command]:
    """Take ready commands, oldest first, up to the limits of a batch.

    The first one is always taken. Of the others, one that does not fit is skipped, so that a
    long prefill does not hold back the decodes behind it.
    """
    chosen: list[Command] = []
    num_tokens = 0
    for command in ready:
        if len(chosen) == max_batch:
            break
        if chosen and num_tokens + command.num_tokens > max_tokens:
            continue
        chosen.append(command)
        num_tokens += command.num_tokens
    return chosen
