"""Cancel scopes: blocks of code that can be stopped from outside or by a deadline."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NoReturn, Self

from inferlet_py._cancellation import CancelNode, split_cancelled
from inferlet_py._tasks import Scheduler, Task, current_task

if TYPE_CHECKING:
    from types import TracebackType


def reraise(error: BaseException) -> NoReturn:
    """Raise an error that replaces the one being handled, and not in its context."""
    context = error.__context__
    try:
        raise error
    finally:
        error.__context__ = context
        del error  # its traceback holds this frame


class CancelScope:
    """A ``with`` block that can be cancelled.

    Once the scope is cancelled, every checkpoint inside it raises ``Cancelled``, again
    and again until the block is left; there the exception ends. A scope may be cancelled
    before it is entered, and is good for one ``with`` only.

    Args:
        deadline: When to cancel by itself, in seconds of ``current_time``.
        relative_deadline: The same, in seconds after the block is entered.
        shield: Whether to hide the cancellation of the scopes around this one.

    Attributes:
        cancelled_caught: Whether the block was left because this scope was cancelled.
    """

    def __init__(
        self,
        *,
        deadline: float = math.inf,
        relative_deadline: float = math.inf,
        shield: bool = False,
    ) -> None:
        _check_deadline(deadline)
        _check_timeout(relative_deadline)
        if deadline != math.inf and relative_deadline != math.inf:
            raise ValueError("give either deadline or relative_deadline, not both")
        self.cancelled_caught = False
        self._deadline = deadline
        self._relative_deadline = relative_deadline
        self._shield = shield
        self._cancel_called = False
        self._has_been_entered = False
        self._scheduler: Scheduler | None = None
        self._node: CancelNode | None = None

    def __enter__(self) -> Self:
        if self._has_been_entered:
            raise RuntimeError(
                "a CancelScope is good for one `with` only: make another"
            )
        task = current_task()
        self._has_been_entered = True
        self._scheduler = task.scheduler
        # The clock is a host call, so it is read only if there is a deadline.
        if self._relative_deadline != math.inf:
            now = task.scheduler.now()
            self._deadline = now + self._relative_deadline
            self._cancel_called = self._cancel_called or now >= self._deadline
        elif self._deadline != math.inf and not self._cancel_called:
            self._cancel_called = task.scheduler.now() >= self._deadline
        self._node = CancelNode(
            task.node,
            deadline=self._deadline,
            is_shielded=self._shield,
            cancel_called=self._cancel_called,
        )
        task.enter(self._node)
        self._update_deadline()
        return self

    def __exit__(
        self,
        _error_type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> bool:
        remaining = self._close(current_task(), error)
        try:
            if remaining is not None and remaining is not error:
                reraise(remaining)
            return remaining is None
        finally:
            del remaining, error  # their tracebacks hold this frame

    def _close(self, task: Task, error: BaseException | None) -> BaseException | None:
        """Leave the scope, and return what is left of the error once it is out."""
        node = self._node
        if node is None:
            return _misnested("it is not open", error)
        if task.node is node and node.parent is not None:
            task.enter(node.parent)
        elif node.parent is not None and node.encloses(task.node):
            task.enter(node.parent)
            error = _misnested("a scope inside it is still open", error)
        else:
            return _misnested("it was opened elsewhere", error)
        if error is not None and node.is_cancelled and not node.inherits_cancellation:
            self.cancelled_caught, error = split_cancelled(error)
        node.close()
        self._node = None
        self._update_deadline()
        self._scheduler = None  # which may refer to this scope for a while
        return error

    def cancel(self) -> None:
        """Stop the block at its next checkpoint, or where it is blocked now."""
        if self._cancel_called:
            return
        self._cancel_called = True
        self._update_deadline()
        if self._node is not None:
            self._node.cancel()

    @property
    def cancel_called(self) -> bool:
        """Whether ``cancel`` was called or the deadline has passed.

        The block may have finished all the same: see ``cancelled_caught``.
        """
        is_over = self._has_been_entered and self._node is None
        if not self._cancel_called and not is_over and self._deadline != math.inf:
            scheduler = self._scheduler or current_task().scheduler
            if scheduler.now() >= self._deadline:
                self.cancel()
        return self._cancel_called

    @property
    def deadline(self) -> float:
        """When the scope is cancelled, in seconds of ``current_time``; can be set."""
        self._check_is_absolute()
        return self._deadline

    @deadline.setter
    def deadline(self, deadline: float) -> None:
        _check_deadline(deadline)
        self._check_is_absolute()
        self._deadline = float(deadline)
        self._update_deadline()

    @property
    def relative_deadline(self) -> float:
        """Seconds until the scope is cancelled; can be set, which counts from now.

        Before the scope is entered they count from then.

        Raises:
            RuntimeError: The scope is not entered, and has an absolute deadline.
        """
        if self._scheduler is not None:
            return self._deadline - self._scheduler.now()
        if self._has_been_entered:
            return self._deadline - current_task().scheduler.now()
        self._check_may_be_relative()
        return self._relative_deadline

    @relative_deadline.setter
    def relative_deadline(self, seconds: float) -> None:
        _check_timeout(seconds)
        if self._has_been_entered:
            scheduler = self._scheduler or current_task().scheduler
            self._deadline = scheduler.now() + seconds
            self._update_deadline()
        else:
            self._check_may_be_relative()
            self._relative_deadline = seconds

    @property
    def is_relative(self) -> bool | None:
        """Whether the deadline counts from when the scope is entered; None after that."""
        return None if self._has_been_entered else self._relative_deadline != math.inf

    @property
    def shield(self) -> bool:
        """Whether the cancellation of scopes around this one is hidden; can be set."""
        return self._shield

    @shield.setter
    def shield(self, shield: bool) -> None:
        self._shield = shield
        if self._node is not None:
            self._node.set_shield(shield)

    def _check_is_absolute(self) -> None:
        if not self._has_been_entered and self._relative_deadline != math.inf:
            raise RuntimeError("the deadline of a timeout is known once it is entered")

    def _check_may_be_relative(self) -> None:
        if self._deadline != math.inf:
            raise RuntimeError(
                "a scope that is not entered yet, with an absolute deadline, has no "
                "relative one: use deadline"
            )

    def _update_deadline(self) -> None:
        if self._scheduler is None:
            return
        is_due = self._node is not None and not self._cancel_called
        if self._node is not None:
            self._node.deadline = self._deadline
        self._scheduler.deadlines.put(self, self._deadline if is_due else math.inf)


def current_effective_deadline() -> float:
    """Return when the running task will be cancelled; ``-inf`` if it already is.

    Shields are taken into account. ``inf`` means that no deadline is set.
    """
    return current_task().node.effective_deadline()


def _check_deadline(deadline: float) -> None:
    if math.isnan(deadline):
        raise ValueError("a deadline must be a time in seconds, not NaN")


def _check_timeout(seconds: float) -> None:
    if math.isnan(seconds) or seconds < 0:
        raise ValueError(f"a timeout must be >= 0 seconds, not {seconds}")


def _misnested(problem: str, error: BaseException | None) -> RuntimeError:
    misnested = RuntimeError(
        f"a cancel scope or nursery cannot be closed here, because {problem}: never "
        "`yield` inside one, except in a @contextmanager, and leave it in the task that "
        "entered it"
    )
    misnested.__context__ = error
    return misnested
