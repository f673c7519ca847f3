"""The points at which a task lets others run and learns that it is cancelled."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

from inferlet_py._tasks import YIELDED, Task, current_task

if TYPE_CHECKING:
    from collections.abc import Generator


def give_up(_error: BaseException) -> bool:
    """Abort a wait that left nothing behind to clean up."""
    return True


def leave_queue(waiting: dict[Task, Any], task: Task, _error: BaseException) -> bool:
    """Abort a wait that consists of an entry in a queue; bind the first two arguments."""
    del waiting[task]
    return True


@types.coroutine
def cancel_shielded_checkpoint() -> Generator[None, BaseException | None, None]:
    """Let the other tasks run; never raise ``Cancelled``."""
    yield YIELDED


async def checkpoint() -> None:
    """Let the other tasks run, and stop here if a scope around is cancelled.

    A loop that computes for long without waiting for anything should do this now and
    then: deadlines, and the cancellation of the whole inferlet, take effect only here.
    """
    await cancel_shielded_checkpoint()
    task = current_task()
    if task.node.is_cancelled:
        await task.park(give_up, "its cancellation")


async def checkpoint_if_cancelled() -> None:
    """Stop here if a scope around is cancelled; otherwise do not even yield."""
    if current_task().node.is_cancelled:
        await checkpoint()
