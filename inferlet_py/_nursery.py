"""Nurseries: blocks that own the tasks started in them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, TypeVarTuple

from inferlet_py._cancellation import Cancelled
from inferlet_py._checkpoints import cancel_shielded_checkpoint
from inferlet_py._scopes import CancelScope, reraise
from inferlet_py._tasks import current_task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from inferlet_py._tasks import Task

Ts = TypeVarTuple("Ts")
StatusT_contra = TypeVar("StatusT_contra", contravariant=True)

_NOT_STARTED: Final = object()


class TaskStatus(Protocol[StatusT_contra]):
    """What a task started by ``Nursery.start`` gets as ``task_status``."""

    def started(self, value: StatusT_contra = ..., /) -> None:
        """Report that the task is ready, and hand ``value`` to the caller of ``start``."""


class _TaskStatusIgnored:
    def __repr__(self) -> str:
        return "TASK_STATUS_IGNORED"

    def started(self, _value: object = None, /) -> None:
        pass


TASK_STATUS_IGNORED: Final[TaskStatus[object]] = _TaskStatusIgnored()


class _TaskGroup:
    """The tasks of a nursery, and what they raised."""

    def __init__(self, parent: Task, cancel_scope: CancelScope) -> None:
        self.num_pending_starts = 0
        self.node = parent.node
        self._parent = parent
        self._cancel_scope = cancel_scope
        self._children: dict[Task, None] = {}
        self._errors: list[BaseException] = []
        self._is_body_running = True
        self._is_parent_waiting = False
        self._is_closed = False
        parent.abandon_nurseries.append(self.abandon)

    def spawn(
        self,
        async_fn: Callable[..., Awaitable[object]],
        args: tuple[object, ...],
        name: str | None,
    ) -> None:
        self.check_is_open()
        task = self._parent.scheduler.spawn(
            async_fn, args, self.node, self._child_finished, name=name
        )
        self._children[task] = None

    def check_is_open(self) -> None:
        if self._is_closed:
            raise RuntimeError(
                "the nursery is closed: its block was left, and all its tasks have ended"
            )

    def close_if_done(self) -> None:
        if self._is_body_running or self._children or self.num_pending_starts:
            return
        self._is_closed = True
        if self._is_parent_waiting:
            self._is_parent_waiting = False
            self._parent.reschedule()

    async def finish(self, error: BaseException | None) -> BaseException | None:
        """Wait for all tasks after the block has ended; return what was raised."""
        if error is not None:
            self._add_error(error)
        self._is_body_running = False
        self.close_if_done()
        if self._is_closed:
            await cancel_shielded_checkpoint()
        else:
            self._is_parent_waiting = True
            await self._parent.park(self._refuse_to_leave, "the tasks of its nursery")
        self._parent.abandon_nurseries.remove(self.abandon)
        errors, self._errors = self._errors, []
        if not errors:
            return None
        return BaseExceptionGroup("Exceptions from Pie nursery", errors)

    def adopt(self, waiting_room: _TaskGroup) -> None:
        """Take over the tasks of another group, with the scopes they have opened."""
        children, waiting_room._children = waiting_room._children, {}
        outermost = [task for task in children if task.node is waiting_room.node]
        for task in children:
            task.on_exit = self._child_finished
            self._children[task] = None
        waiting_room.node.move_children_to(self.node)
        for task in outermost:
            task.enter(self.node)
        waiting_room.close_if_done()

    def abandon(self) -> None:
        """Cancel the tasks; the one that would have waited for them has ended."""
        self._is_closed = True
        self._cancel_scope.cancel()

    def _add_error(self, error: BaseException) -> None:
        self._errors.append(error)
        self._cancel_scope.cancel()

    def _child_finished(
        self, task: Task, _value: object, error: BaseException | None
    ) -> None:
        del self._children[task]
        if error is not None:
            self._add_error(error)
        self.close_if_done()

    def _refuse_to_leave(self, error: BaseException) -> bool:
        # A scope that cancels the parent cancels the tasks too, so they will end soon.
        if not isinstance(error, Cancelled):
            self._add_error(error)
        return False


class Nursery:
    """Where tasks are started; ``open_nursery`` makes it.

    Attributes:
        cancel_scope: The scope around the block and all its tasks.
    """

    def __init__(self, group: _TaskGroup, cancel_scope: CancelScope) -> None:
        self.cancel_scope: Final = cancel_scope
        self._group = group

    def start_soon(
        self,
        async_fn: Callable[[*Ts], Awaitable[object]],
        *args: *Ts,
        name: str | None = None,
    ) -> None:
        """Start ``async_fn(*args)`` as a task, which first runs once this one blocks.

        If it raises, everything else in the nursery is cancelled, and the error comes out
        of the ``async with`` block, in a group.

        Raises:
            RuntimeError: The block was left, and all its tasks have ended.
        """
        self._group.spawn(async_fn, args, name)

    async def start(
        self,
        async_fn: Callable[..., Awaitable[object]],
        *args: object,
        name: str | None = None,
    ) -> Any:
        """Start a task, and wait until it calls ``task_status.started(value)``.

        Until then the task belongs to this call: its errors come out here, and are not
        wrapped in a group; if this call is cancelled, so is the task.

        Returns:
            The value the task handed to ``started``.

        Raises:
            RuntimeError: The task ended without calling ``started``, or the nursery is
                closed.
        """
        self._group.check_is_open()
        self._group.num_pending_starts += 1
        status = _TaskStatus(self._group)
        task_fn = functools.partial(async_fn, task_status=status)
        name = name or getattr(async_fn, "__qualname__", None)
        try:
            manager = _NurseryManager()
            async with manager:
                status.waiting_room = manager.group
                manager.group.spawn(task_fn, args, name)
        except BaseExceptionGroup as group:
            # It is the work of our own nursery, which held one task only.
            reraise(group.exceptions[0])
        finally:
            self._group.num_pending_starts -= 1
            self._group.close_if_done()
        if status.value is _NOT_STARTED:
            raise RuntimeError("the task ended without calling task_status.started()")
        return status.value


class _TaskStatus:
    waiting_room: _TaskGroup  # where the task stays until it has started

    def __init__(self, group: _TaskGroup) -> None:
        self._group = group
        self.value: object = _NOT_STARTED

    def started(self, value: object = None, /) -> None:
        if self.value is not _NOT_STARTED:
            raise RuntimeError("task_status.started() was called twice")
        self.value = value
        # A task may be on its way out already, with a `Cancelled` that only the scopes
        # around `start` will catch. It stays there, and soon ends.
        if not self.waiting_room.node.is_cancelled:
            self._group.adopt(self.waiting_room)


class _NurseryManager:
    # Not an @asynccontextmanager, which would add its frames to every traceback.
    group: _TaskGroup
    _scope: CancelScope

    async def __aenter__(self) -> Nursery:
        self._scope = CancelScope()
        self._scope.__enter__()
        self.group = _TaskGroup(current_task(), self._scope)
        return Nursery(self.group, self._scope)

    async def __aexit__(
        self,
        _error_type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> bool:
        combined = await self.group.finish(error)
        if combined is None:
            return self._scope.__exit__(None, None, None)
        try:
            if not self._scope.__exit__(type(combined), combined, None):
                reraise(combined)
            return True
        finally:
            del combined, error  # their tracebacks hold this frame


def open_nursery() -> AbstractAsyncContextManager[Nursery]:
    """Return an async context manager that owns the tasks started in it.

    Its block ends when all tasks have ended. At the first error, in a task or in the
    block, everything else is cancelled. All errors come out together in an
    ``ExceptionGroup``, also if there is but one: handle them with ``except*``.
    """
    return _NurseryManager()
