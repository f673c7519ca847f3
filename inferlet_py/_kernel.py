"""The scheduler of a guest: tasks, and the loop that runs them until all are blocked.

It knows nothing of the host but the ``Waiter``, so it runs the same in Wasm and natively.
Nurseries, cancel scopes and everything a task can wait for are built on top of it.
"""

from __future__ import annotations

import contextvars
import functools
from collections import deque
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, TypeVarTuple, cast

from inferlet_py._cancellation import CancelNode, make_cancelled, split_cancelled
from inferlet_py._deadlines import Deadlines
from inferlet_py._deadlock import DeadlockError, waiting_line
from inferlet_py._tasks import PARKED, YIELDED, Task, current_task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from inferlet_py._tasks import ExitCallback

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# Tasks that keep each other busy must not starve those whose tickets are ready: after so
# many batches in a row the loop looks at the tickets without waiting.
MAX_BATCHES_BEFORE_POLL = 100

# No ticket has this number: the host returns it among those that are ready, once, when the
# program is to end.
STOP = 0


class Waiter(Protocol):
    """The host, as far as the kernel needs it."""

    def now(self) -> float:
        """Return monotonic seconds."""
        ...

    def wait(self, tickets: list[int], deadline: float | None) -> Sequence[int]:
        """Block until a ticket is ready or the deadline has passed.

        Returns:
            The tickets that are ready, perhaps none. Each has been in ``tickets``, but for
            ``STOP``, which asks for the end of the program.
        """
        ...

    def cancel(self, ticket: int) -> None:
        """Withdraw the command of a ticket that nobody awaits any more; release it."""
        ...


_current_kernel: contextvars.ContextVar[Kernel] = contextvars.ContextVar(
    "inferlet_kernel"
)


class Kernel:
    """Runs the tasks of one program, first come, first served."""

    def __init__(self, waiter: Waiter) -> None:
        self.waiter = waiter
        self.deadlines = Deadlines()
        self.runnable: deque[Task] = deque()
        self._root_node = CancelNode(None)
        self._tasks: dict[Task, None] = {}
        self._task_by_ticket: dict[int, Task] = {}
        self._result: tuple[object, BaseException | None] = (None, None)

    def run(self, async_fn: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """Run a program to its end; see the function ``run``."""
        if _current_kernel.get(None) is not None:
            raise RuntimeError("run() was called inside of run(): await the function")
        token = _current_kernel.set(self)
        try:
            self.spawn(async_fn, args, self._root_node, self._root_finished)
            self._run_tasks()
        finally:
            _current_kernel.reset(token)
        value, error = self._result
        self._result = (None, None)
        if error is not None:
            try:
                raise error
            finally:
                del error
        return cast("T", value)

    def now(self) -> float:
        """Return monotonic seconds."""
        return self.waiter.now()

    def cancel_root(self) -> None:
        """Cancel the whole program."""
        self._root_node.cancel()

    def spawn(
        self,
        async_fn: Callable[..., Awaitable[object]],
        args: tuple[object, ...],
        node: CancelNode,
        on_exit: ExitCallback,
        *,
        name: str | None = None,
    ) -> Task:
        """Create a task in a copy of the current context; it starts with the next batch."""
        context = contextvars.copy_context()
        coro: object = context.run(async_fn, *args)
        if not isinstance(coro, Coroutine):
            raise TypeError(
                f"expected an async function, but {async_fn!r} returned {coro!r}"
            )
        coro = cast("Coroutine[Any, Any, object]", coro)
        name = name or _name_of(async_fn)
        task = Task(self, coro, context, name=name, node=node, on_exit=on_exit)
        self._tasks[task] = None
        self.runnable.append(task)
        return task

    def _run_tasks(self) -> None:
        num_busy_batches = 0
        while self._tasks:
            if not self.runnable:
                self._wait(self.deadlines.nearest())
                num_busy_batches = 0
            elif num_busy_batches >= MAX_BATCHES_BEFORE_POLL and self._task_by_ticket:
                self._wait(self.waiter.now())
                num_busy_batches = 0
            if self.deadlines:
                self.deadlines.expire(self.waiter.now())
            # Who becomes runnable now has to wait for the next batch, so that deadlines
            # are looked at in between.
            for _ in range(self._next_batch_size()):
                self._step(self.runnable.popleft())
            num_busy_batches += 1

    def _next_batch_size(self) -> int:
        return len(self.runnable)

    def _wait(self, deadline: float | None) -> None:
        if deadline is None and not self._task_by_ticket:
            waits = [(t.name, t.waits_for, waiting_line(t.coro)) for t in self._tasks]
            self._interrupt(DeadlockError(waits))
            return
        try:
            ready = self.waiter.wait(list(self._task_by_ticket), deadline)
        except BaseException as error:  # noqa: BLE001  # raised in the root instead
            self._interrupt(error)
            return
        for ticket in ready:
            # It may be gone: `wait` itself may have cancelled the root.
            task = self._task_by_ticket.pop(ticket, None)
            if task is not None:
                task.reschedule()
        if STOP in ready:
            self.cancel_root()

    def _interrupt(self, error: BaseException) -> None:
        """Raise in the root; once that is being left, in the first task that can be."""
        for task in self._tasks:  # the root came first
            if task.abort is not None:
                task.interrupt(error)
                return
        raise error  # pragma: no cover  # if all were waiting for nurseries, for whose?

    def _step(self, task: Task) -> None:
        """Run a task until it blocks on something that is not there yet, or ends."""
        run, send = task.context.run, task.coro.send
        resume, task.resume = task.resume, send
        value: object = None
        error: BaseException | None = None
        try:
            trap = run(resume, task.take_wake_error())
            while type(trap) is int and self._wait_ticket(task, trap):
                trap = run(send, None)
        except StopIteration as stop:
            value = stop.value
        except BaseException as raised:  # noqa: BLE001  # goes to the nursery
            traceback = raised.__traceback__
            error = raised.with_traceback(traceback and traceback.tb_next)
            del traceback
        else:
            self._block(task, trap)
            return
        # Outside of `except`, or the error would become the context of later ones.
        self._finish(task, value, error)
        del error

    def _block(self, task: Task, trap: object) -> None:
        if trap is YIELDED:
            task.reschedule()
        elif trap is PARKED:
            if task.node.is_cancelled:
                task.deliver_cancel()
        elif type(trap) is not int:  # `_wait_ticket` has enlisted a ticket
            # Our own awaitables raise what they are sent; a foreign one would not.
            task.resume = task.coro.throw
            task.reschedule(
                error=TypeError(
                    f"an inferlet cannot await {trap!r}: it comes from another async "
                    "framework (asyncio?), whose event loop is not running here"
                )
            )

    def _wait_ticket(self, task: Task, ticket: int) -> bool:
        """Return whether the ticket is ready; otherwise enlist the task as waiting.

        This is the hot path. While no other task could run, the wait happens right here
        and the task goes on without a turn of the loop.
        """
        failure: BaseException | None = None
        is_taken_next = ticket < 0  # see `wait_to_take`
        ticket = abs(ticket)
        if not (self.runnable or self._task_by_ticket or task.node.is_cancelled):
            if is_taken_next and not self.deadlines:
                return True
            try:
                ready = self.waiter.wait([ticket], self.deadlines.nearest())
            except BaseException as error:  # noqa: BLE001  # raised in the root instead
                failure = error
            else:
                if self.deadlines:
                    self.deadlines.expire(self.waiter.now())
                if STOP in ready:
                    self.cancel_root()
                if ticket in ready:
                    return True
        if ticket in self._task_by_ticket:
            other = self._task_by_ticket[ticket].name
            message = f"ticket {ticket} is already awaited, by task {other}"
            task.reschedule(error=RuntimeError(message))
            return False
        self._task_by_ticket[ticket] = task
        task.abort = functools.partial(self._withdraw, ticket)
        if failure is not None:
            self._interrupt(failure)
        elif task.node.is_cancelled:
            task.deliver_cancel()
        return False

    def _withdraw(self, ticket: int, _error: BaseException) -> bool:
        del self._task_by_ticket[ticket]
        self.waiter.cancel(ticket)
        return True

    def _finish(self, task: Task, value: object, error: BaseException | None) -> None:
        if task.abandon_nurseries:
            for abandon in task.abandon_nurseries:
                abandon()
            problem = RuntimeError(
                f"task {task.name} ended without closing a nursery it had opened: "
                "use `async with open_nursery()`, and no `yield` inside it"
            )
            problem.__context__ = error
            error = problem
        del self._tasks[task]
        del task.node.tasks[task]
        del task.context  # which holds the task: no work for the garbage collector
        task.on_exit(task, value, error)

    def _root_finished(
        self, _task: Task, value: object, error: BaseException | None
    ) -> None:
        if error is not None and self._root_node.is_cancelled:
            is_cancelled, rest = split_cancelled(error)
            if is_cancelled:
                error = rest or make_cancelled()
        self._result = (value, error)


def run(async_fn: Callable[[*Ts], Awaitable[T]], *args: *Ts, waiter: Waiter) -> T:
    """Run ``async_fn(*args)`` and all tasks it starts, and return what it returns.

    Raises:
        Cancelled: ``cancel_root`` was called, and the program stopped because of it.
        DeadlockError: All tasks were blocked for good. It is raised in the root task, so
            in a group if that was waiting for a nursery.
        BaseException: Whatever the program raised.
    """
    return Kernel(waiter).run(async_fn, *args)


def cancel_root() -> None:
    """Cancel the whole program; ``Waiter.wait`` may call it."""
    kernel = _current_kernel.get(None)
    if kernel is None:
        raise RuntimeError("there is no inferlet to cancel: call this below `run`")
    kernel.cancel_root()


def stop_in_call(ticket: int) -> None:
    """Cancel the whole program, which the host asks for in a call that waits for a ticket.

    Returns only if the call may be made again, as that of a shielded task.

    Raises:
        Cancelled: The call was given up, and the ticket with it.
    """
    kernel = _current_kernel.get(None)
    if kernel is None:
        return
    kernel.cancel_root()
    if current_task().node.is_cancelled:
        kernel.waiter.cancel(ticket)
        raise make_cancelled()


def _name_of(async_fn: Callable[..., object]) -> str:
    while isinstance(async_fn, functools.partial):
        async_fn = async_fn.func
    return getattr(async_fn, "__qualname__", None) or repr(async_fn)
