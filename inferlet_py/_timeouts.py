"""Sleeping, and scopes that end after some time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NoReturn

from inferlet_py._checkpoints import checkpoint, give_up
from inferlet_py._scopes import CancelScope
from inferlet_py._tasks import current_task

if TYPE_CHECKING:
    from types import TracebackType


class TooSlowError(Exception):
    """The block of a ``fail_after`` or ``fail_at`` did not end in time."""


class _FailScope(CancelScope):
    # A subclass, since a @contextmanager would put contextlib into every traceback.

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Literal[False]:
        super().__exit__(error_type, error, traceback)
        if self.cancelled_caught:
            raise TooSlowError
        # So that type checkers know that what follows the block runs after all of it.
        return False


def current_time() -> float:
    """Return monotonic seconds, the clock of all deadlines."""
    return current_task().scheduler.now()


def move_on_at(deadline: float, *, shield: bool = False) -> CancelScope:
    """Return a scope that is cancelled at a time of ``current_time``."""
    return CancelScope(deadline=deadline, shield=shield)


def move_on_after(seconds: float, *, shield: bool = False) -> CancelScope:
    """Return a scope that is cancelled some time after it is entered."""
    return CancelScope(relative_deadline=seconds, shield=shield)


def fail_at(deadline: float, *, shield: bool = False) -> _FailScope:
    """Return a scope like that of ``move_on_at`` that raises ``TooSlowError``."""
    return _FailScope(deadline=deadline, shield=shield)


def fail_after(seconds: float, *, shield: bool = False) -> _FailScope:
    """Return a scope like that of ``move_on_after`` that raises ``TooSlowError``."""
    return _FailScope(relative_deadline=seconds, shield=shield)


async def sleep_forever() -> NoReturn:
    """Wait until cancelled."""
    await current_task().park(give_up, "its cancellation (sleep_forever)")
    raise AssertionError("nothing wakes it")  # pragma: no cover  # for the type checker


async def sleep_until(deadline: float) -> None:
    """Wait for a time of ``current_time``; at least a checkpoint if it has passed."""
    with move_on_at(deadline):
        await sleep_forever()


async def sleep(seconds: float) -> None:
    """Wait for some time; 0 is a checkpoint."""
    if seconds == 0:
        await checkpoint()
        return
    # A scope and not a timer of its own, for the case that a scope around is cancelled
    # in the very moment the time is over: the cancellation then wins, as in trio.
    with move_on_after(seconds):
        await sleep_forever()
