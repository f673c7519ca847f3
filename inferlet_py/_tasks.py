"""A task: a coroutine, the scope it is in, and what it is blocked on.

Who runs when is decided in ``_kernel``; what there is to wait for is built on ``park``.
"""

from __future__ import annotations

import contextvars
import types
from typing import TYPE_CHECKING, Any, Final, Protocol

from inferlet_py._cancellation import make_cancelled

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Awaitable, Callable, Coroutine, Generator

    from inferlet_py._cancellation import CancelNode
    from inferlet_py._deadlines import Deadlines

# What a task may yield to the loop, besides the number of a ticket.
YIELDED: Final = None  # run the others, then come back
PARKED: Final = object()  # someone will call `reschedule`


class Scheduler(Protocol):
    """The kernel, as far as tasks, scopes and nurseries need it."""

    deadlines: Deadlines
    runnable: deque[Task]

    def now(self) -> float:
        """Return monotonic seconds."""
        ...

    def spawn(
        self,
        async_fn: Callable[..., Awaitable[object]],
        args: tuple[object, ...],
        node: CancelNode,
        on_exit: ExitCallback,
        *,
        name: str | None = None,
    ) -> Task:
        """Create a task in a copy of the current context; it runs with the next batch."""
        ...


class ExitCallback(Protocol):
    """Who wants to know that a task has ended."""

    def __call__(
        self, task: Task, value: object, error: BaseException | None, /
    ) -> None:
        """Take what the task returned, or the error it ended with."""


class Task:
    """A coroutine that the kernel drives, and what it is blocked on.

    Attributes:
        node: The innermost cancel scope that is open.
        abort: Gives up what the task is blocked on, as in ``park``; None if it is not
            blocked, or blocked in something that cannot be given up.
        waits_for: What the task is blocked on, in words.
        resume: What takes the coroutine through its next step.
        abandon_nurseries: Cancels a nursery, for each one that the task has open.
    """

    __slots__ = (
        "_wake_error",
        "_wake_value",
        "abandon_nurseries",
        "abort",
        "context",
        "coro",
        "name",
        "node",
        "on_exit",
        "resume",
        "scheduler",
        "waits_for",
    )

    def __init__(
        self,
        scheduler: Scheduler,
        coro: Coroutine[Any, Any, object],
        context: contextvars.Context,
        *,
        name: str,
        node: CancelNode,
        on_exit: ExitCallback,
    ) -> None:
        self.scheduler, self.coro, self.context = scheduler, coro, context
        self.name = name
        self.on_exit = on_exit
        self.resume: Callable[[Any], object] = coro.send
        self.node = node
        node.tasks[self] = None
        self.abandon_nurseries: list[Callable[[], None]] = []
        self.abort: Callable[[BaseException], bool] | None = None
        self.waits_for = ""
        self._wake_value: Any = None
        self._wake_error: BaseException | None = None
        context.run(_current_task.set, self)

    def enter(self, node: CancelNode) -> None:
        """Make ``node`` the innermost scope of this task."""
        del self.node.tasks[self]
        self.node = node
        node.tasks[self] = None
        if node.is_cancelled:
            self.deliver_cancel()

    def deliver_cancel(self) -> None:
        """Wake up with ``Cancelled`` if blocked in something that can be given up."""
        if self.abort is not None:
            self.interrupt(make_cancelled())

    def interrupt(self, error: BaseException) -> None:
        """Raise ``error`` where the task is blocked, unless that refuses to be left."""
        abort, self.abort = self.abort, None
        if abort is not None and abort(error):
            self.reschedule(error=error)

    def reschedule(
        self, value: object = None, *, error: BaseException | None = None
    ) -> None:
        """Let ``park`` return the value, or raise the error, in the next batch."""
        self.abort = None
        self._wake_value, self._wake_error = value, error
        self.scheduler.runnable.append(self)

    @types.coroutine
    def park(
        self, abort: Callable[[BaseException], bool], waits_for: str
    ) -> Generator[object, BaseException | None, Any]:
        """Block this task, which must be the running one, until it is rescheduled.

        Args:
            abort: Called at most once, to give up waiting because of an error. Returns
                whether it has: the task then wakes up with that error.
            waits_for: Names what will wake the task, for the report of a deadlock.
        """
        self.abort, self.waits_for = abort, waits_for
        error = yield PARKED
        try:
            if error is not None:
                raise error
            return self._wake_value
        finally:
            self._wake_value = None
            del error  # its traceback holds this frame

    def take_wake_error(self) -> BaseException | None:
        """Return what the task shall be woken with, once."""
        error, self._wake_error = self._wake_error, None
        return error


_current_task: contextvars.ContextVar[Task] = contextvars.ContextVar("inferlet_task")


def current_task() -> Task:
    """Return the task this code runs in.

    Raises:
        RuntimeError: It runs in none.
    """
    # A context variable instead of a slot that every step sets: each task has its own
    # context anyway, so this costs the hot path nothing.
    task = _current_task.get(None)
    if task is None:
        raise RuntimeError("this works only inside a task of an inferlet")
    return task


@types.coroutine
def wait_ticket(ticket: int) -> Generator[int, BaseException | None, None]:
    """Wait until the command behind a ticket is done.

    A ticket must be awaited, once, or cancelled. If the wait is cancelled the kernel
    withdraws the command and releases the ticket.
    """
    error = yield ticket
    if error is not None:
        try:
            raise error
        finally:
            del error  # its traceback holds this frame


@types.coroutine
def wait_to_take(ticket: int) -> Generator[int, BaseException | None, None]:
    """As ``wait_ticket``, for callers whose next step takes the result from the host.

    Taking waits for the command too. A task that is alone, with no deadline, may therefore
    skip this wait, which saves it one suspension.
    """
    error = yield -ticket
    if error is not None:
        try:
            raise error
        finally:
            del error  # its traceback holds this frame
